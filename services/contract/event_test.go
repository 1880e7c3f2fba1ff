package contract_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", contract.MaxEventBytes)
	for _, c := range []struct {
		name, body string
		want       contract.Event
		problem    string // in the error's text; empty for none
	}{
		{name: "an event", body: `{"name":"a","content":"b"}`, want: contract.Event{Name: "a", Content: "b"}},
		{name: "no content", body: `{"name":"a"}`, want: contract.Event{Name: "a"}},
		{name: "every script", body: `{"name":"имя 名前 اسم 🎬","content":"\u0000"}`, want: contract.Event{Name: "имя 名前 اسم 🎬", Content: "\x00"}},
		{name: "the longest", body: `{"name":"` + long + `"}`, want: contract.Event{Name: long}},
		{name: "one byte too long", body: `{"name":"` + long + `","content":"x"}`, problem: "at most 65536"},
		{name: "nothing", body: ``, problem: "ends too early"},
		{name: "half", body: `{"name":"a"`, problem: "ends too early"},
		{name: "not JSON", body: `name=a`, problem: "not JSON"},
		{name: "no name", body: `{"content":"b"}`, problem: "name is missing"},
		{name: "null", body: `null`, problem: "name is missing"},
		{name: "empty name", body: `{"name":"","content":"b"}`, problem: "name is missing"},
		{name: "a number for the name", body: `{"name":1}`, problem: "name is not a JSON string"},
		{name: "an array", body: `[{"name":"a"}]`, problem: "not a JSON object"},
		{name: "an unknown field", body: `{"name":"a","contents":"b"}`, problem: `unknown field "contents"`},
		{name: "a name given twice", body: `{"name":"a","name":"b"}`, problem: "name is given more than once"},
		{name: "a name in another case", body: `{"Name":"a"}`, problem: `unknown field "Name"`},
		{name: "a byte order mark", body: "\ufeff" + `{"name":"a"}`, want: contract.Event{Name: "a"}},
		{name: "two events", body: `{"name":"a"}{"name":"b"}`, problem: "after top-level value"},
		{name: "an unknown field with a long name", body: `{"` + long + `":1}`, problem: "only name and content"},
		{name: "a pair of escapes", body: `{"name":"\ud83d\uDE00 \\ud83d"}`, want: contract.Event{Name: `😀 \ud83d`}},
		{name: "half a pair", body: `{"name":"a","content":"\ud83d"}`, problem: "invalid surrogate pair"},
		{name: "two halves in the wrong order", body: `{"name":"\ude00\ud83d"}`, problem: "invalid surrogate pair"},
		{name: "an escaped backslash and half a pair", body: `{"name":"\\\uD83D"}`, problem: "invalid surrogate pair"},
		{name: "invalid UTF-8", body: "{\"name\":\"a\xff\"}", problem: "invalid UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := contract.Decode([]byte(c.body))
			if c.problem == "" {
				require.NoError(t, err)
				require.Equal(t, c.want, got)
				return
			}
			require.ErrorIs(t, err, contract.ErrInvalid)
			require.ErrorContains(t, err, c.problem)
			require.Less(t, len(err.Error()), 500, "it goes into a header and a log")
			require.NotContains(t, err.Error(), "contract.Event", "a Go type tells the sender nothing")
		})
	}
}

func TestAMessageMayHaveFieldsThatWeDoNotKnow(t *testing.T) {
	t.Parallel()
	e, err := contract.DecodeMessage([]byte("\ufeff" + `{"name":"a","version":2,"content":"b"}`))
	require.NoError(t, err)
	require.Equal(t, contract.Event{Name: "a", Content: "b"}, e)
	for _, body := range []string{`{"name":"a","name":"b"}`, `{"Name":"a"}`, `{"name":"\ud83d"}`, `[]`, ``} {
		_, err := contract.DecodeMessage([]byte(body))
		require.ErrorIs(t, err, contract.ErrInvalid, body)
	}
}

func TestEncodeIsExactlyTheTwoFields(t *testing.T) {
	t.Parallel()
	body, err := contract.Event{Name: "a&b", Content: `<"й">`}.Encode()
	require.NoError(t, err)
	require.Equal(t, `{"name":"a&b","content":"<\"й\">"}`, string(body))
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"a","content":"b"}`))
	f.Add([]byte(`{"name":"a","content":null}`))
	f.Add([]byte(`[1,2`))
	f.Fuzz(func(t *testing.T, body []byte) {
		event, err := contract.Decode(body)
		if err != nil {
			require.ErrorIs(t, err, contract.ErrInvalid)
			return
		}
		again, err := event.Encode()
		require.NoError(t, err)
		decoded, err := contract.Decode(again)
		require.NoError(t, err)
		require.Equal(t, event, decoded)
	})
}
