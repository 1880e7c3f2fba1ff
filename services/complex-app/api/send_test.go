package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
)

const (
	form   = "application/x-www-form-urlencoded"
	asJSON = "application/json"
)

// A page of another site must not act through the browser of whoever opens it.
func TestAnotherSitesPage(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	url := serve(t, p, &fakeStore{})
	for _, path := range []string{"/send?name=a", "/send/batch", "/dead-letters/redrive"} {
		requireProblem(t, request(t, http.MethodPost, url+path, "", "", "Sec-Fetch-Site", "cross-site"), http.StatusForbidden, "a page of another site")
		requireProblem(t, request(t, http.MethodPost, url+path, "", "", "Origin", "https://example.com"), http.StatusForbidden, "a page of another site")
	}
	require.Empty(t, p.published)
	for _, own := range [][]string{{"Sec-Fetch-Site", "same-origin"}, {"Origin", url}, {}} { // curl sends neither
		require.Equal(t, http.StatusAccepted, request(t, http.MethodPost, url+"/send?name=a", "", "", own...).status)
	}
}

func TestSend(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, query, contentType, body string
		want                           contract.Event
	}{
		{name: "query", query: "?name=record1&content=content1", want: contract.Event{Name: "record1", Content: "content1"}},
		{name: "no content, as an unquoted & in a shell leaves it", query: "?name=record1", want: contract.Event{Name: "record1"}},
		{name: "empty content", query: "?name=record1&content=", want: contract.Event{Name: "record1"}},
		{name: "escaped", query: "?name=" + url.QueryEscape("имя & 名前 +\x00") + "&content=a%2Bb+c", want: contract.Event{Name: "имя & 名前 +\x00", Content: "a+b c"}},
		{name: "form", contentType: form, body: "name=a&content=b%26c", want: contract.Event{Name: "a", Content: "b&c"}},
		{name: "form with a charset", contentType: form + "; charset=utf-8", body: "name=a", want: contract.Event{Name: "a"}},
		{name: "JSON", contentType: asJSON, body: `{"name":"a","content":"<b>"}`, want: contract.Event{Name: "a", Content: "<b>"}},
		{name: "JSON with a charset", contentType: "Application/JSON; charset=utf-8", body: `{"name":"a"}`, want: contract.Event{Name: "a"}},
		{name: "a content type without a body", query: "?name=a", contentType: asJSON, want: contract.Event{Name: "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := &fakePublisher{}
			a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send"+c.query, c.contentType, c.body)
			require.Equal(t, http.StatusAccepted, a.status, a.body)
			require.Equal(t, asJSON, a.header.Get("Content-Type"))
			var got struct{ ID, Name, Content string }
			require.NoError(t, json.Unmarshal([]byte(a.body), &got))
			id, err := uuid.Parse(got.ID)
			require.NoError(t, err)
			require.EqualValues(t, 7, id.Version())
			require.Equal(t, c.want, contract.Event{Name: got.Name, Content: got.Content})

			require.Len(t, p.published, 1)
			require.Equal(t, c.want, p.published[0].Event)
			require.Equal(t, got.ID, p.published[0].ID)
			require.WithinDuration(t, time.Now(), p.published[0].SentAt, time.Minute)
		})
	}
}

func TestSendRefusesBadInput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", contract.MaxEventBytes)
	for _, c := range []struct {
		name, query, contentType, body string
		header                         []string
		status                         int
		detail                         string
	}{
		{name: "nothing", detail: "name is missing"},
		{name: "no name", query: "?content=a", detail: "name is missing"},
		{name: "empty name", query: "?name=&content=a", detail: "name is missing"},
		{name: "invalid UTF-8 name", query: "?name=a%ff", detail: "name is not valid UTF-8"},
		{name: "invalid UTF-8 content", query: "?name=a&content=%ff", detail: "content is not valid UTF-8"},
		{name: "broken escape", query: "?name=%zz", detail: "not URL-encoded"},
		{name: "semicolon", query: "?name=a;content=b", detail: "not URL-encoded"},
		{name: "unknown field", query: "?name=a&contents=b", detail: `unknown field "contents"`},
		{name: "a name twice", query: "?name=a&name=b", detail: "name is given more than once"},
		{name: "query and body", query: "?name=a", contentType: asJSON, body: `{"name":"b"}`, detail: "a query and a body"},
		{name: "not JSON", contentType: asJSON, body: "name=a", detail: "not JSON"},
		{name: "half a JSON", contentType: asJSON, body: `{"name":`, detail: "ends too early"},
		{name: "unknown JSON field", contentType: asJSON, body: `{"name":"a","x":1}`, detail: `unknown field "x"`},
		{name: "JSON under a form's type", contentType: form, body: `{"name":"a"}`, detail: "with Content-Type: application/json"},
		{name: "a long body", contentType: asJSON, body: `{"name":"` + long + `"}`, status: http.StatusRequestEntityTooLarge, detail: "longer than 65536 bytes"},
		{name: "a compressed body", contentType: asJSON, body: "\x1f\x8b", header: []string{"Content-Encoding", "gzip"}, status: http.StatusUnsupportedMediaType, detail: "compressed"},
		{name: "a long query", query: "?name=" + long, status: http.StatusRequestEntityTooLarge, detail: "longer than 65536 bytes"},
		{name: "no content type", body: "name=a", status: http.StatusUnsupportedMediaType, detail: "application/json"},
		{name: "multipart", contentType: "multipart/form-data; boundary=x", body: "--x--", status: http.StatusUnsupportedMediaType, detail: "application/json"},
		{name: "an empty key", query: "?name=a", header: []string{"Idempotency-Key", ""}, detail: "Idempotency-Key"},
		{name: "a key with a space", query: "?name=a", header: []string{"Idempotency-Key", "a b"}, detail: "Idempotency-Key"},
		{name: "a key that is not ASCII", query: "?name=a", header: []string{"Idempotency-Key", "ключ"}, detail: "Idempotency-Key"},
		{name: "a key too long", query: "?name=a", header: []string{"Idempotency-Key", strings.Repeat("k", 256)}, detail: "Idempotency-Key"},
		{name: "half a quoted key", query: "?name=a", header: []string{"Idempotency-Key", `a"`}, detail: "Idempotency-Key"},
		{name: "the other half", query: "?name=a", header: []string{"Idempotency-Key", `"a`}, detail: "Idempotency-Key"},
		{name: "empty quotes", query: "?name=a", header: []string{"Idempotency-Key", `""`}, detail: "Idempotency-Key"},
		{name: "two keys", query: "?name=a", header: []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, detail: "Idempotency-Key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := &fakePublisher{}
			a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send"+c.query, c.contentType, c.body, c.header...)
			status := c.status
			if status == 0 {
				status = http.StatusBadRequest
			}
			members := requireProblem(t, a, status, c.detail)
			require.NotContains(t, members, "id")
			if strings.Contains(c.detail, "compressed") {
				require.Equal(t, "identity", a.header.Get("Accept-Encoding"))
			}
			require.Empty(t, p.published)
		})
	}
}

func TestIdempotencyKeyBecomesTheMessagesID(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"order-17":               "order-17",
		`"8e03978e-40d5-43dd"`:   "8e03978e-40d5-43dd", // as the IETF draft writes it
		strings.Repeat("k", 255): strings.Repeat("k", 255),
	} {
		p := &fakePublisher{}
		a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send?name=a", "", "", "Idempotency-Key", header)
		require.Equal(t, http.StatusAccepted, a.status, a.body)
		require.Equal(t, want, p.published[0].ID)
		require.Contains(t, a.body, want)
	}
}

func TestSendWhenRabbitMQIsAway(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp 10.0.0.7:5672: connection refused")
	for err, detail := range map[error]string{
		queue.ErrUnavailable: "was not accepted",
		queue.ErrUnconfirmed: "may have been accepted",
	} {
		p := &fakePublisher{err: fmt.Errorf("%w: %w", err, secret)}
		a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send?name=a", "", "", "Idempotency-Key", "k-1")
		members := requireProblem(t, a, http.StatusServiceUnavailable, detail)
		require.Equal(t, "k-1", members["id"], "with it the client can send again safely")
		require.NotContains(t, a.body, "10.0.0.7")
	}
}

func TestAnUnforeseenErrorTellsNothing(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{err: errors.New("10.0.0.7 said no")}
	a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send?name=a", "", "")
	requireProblem(t, a, http.StatusInternalServerError, "internal error")
	require.NotContains(t, a.body, "10.0.0.7")
}

func FuzzSend(f *testing.F) {
	f.Add("name=a&content=b", "", "")
	f.Add("", asJSON, `{"name":"a"}`)
	f.Add("", form, "name=%ff")
	p := &fakePublisher{}
	handler := newHandler(p, &fakeStore{})
	f.Fuzz(func(t *testing.T, query, contentType, body string) {
		status := do(handler, http.MethodPost, "/send", query, contentType, body)
		require.Contains(t, []int{http.StatusAccepted, http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}, status)
		for _, m := range p.published {
			require.NoError(t, m.Validate())
		}
		p.published = nil
	})
}
