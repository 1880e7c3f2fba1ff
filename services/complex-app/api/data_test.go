package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/records"
)

func TestDataWithoutRecords(t *testing.T) {
	t.Parallel()
	a := request(t, http.MethodGet, serve(t, &fakePublisher{}, &fakeStore{})+"/data", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, asJSON, a.header.Get("Content-Type"))
	require.JSONEq(t, "[]", a.body)
}

func TestData(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 1, 12, 0, 0, 5e6, time.UTC)
	s := &fakeStore{records: []records.Record{
		{ID: "1", Name: "<имя>", Content: "c", Status: records.Done, Job: "processor-job-a", Attempts: 2, SentAt: at, StoredAt: at, FinishedAt: at},
		{ID: "2", Name: "b", Status: records.Processing, Job: "processor-job-b", Attempts: 1, SentAt: at, StoredAt: at},
	}}
	a := request(t, http.MethodGet, serve(t, &fakePublisher{}, s)+"/data", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.JSONEq(t, `[
		{"id":"1","name":"<имя>","content":"c","status":"done","job":"processor-job-a","attempts":2,
		 "sentAt":"2026-11-01T12:00:00.005Z","storedAt":"2026-11-01T12:00:00.005Z","finishedAt":"2026-11-01T12:00:00.005Z"},
		{"id":"2","name":"b","content":"","status":"processing","job":"processor-job-b","attempts":1,
		 "sentAt":"2026-11-01T12:00:00.005Z","storedAt":"2026-11-01T12:00:00.005Z"}
	]`, a.body)
	require.Contains(t, a.body, "<имя>", "not escaped for a browser")
}

// The answer is what encoding/json makes of the records.
func TestDataIsJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 1, 12, 0, 0, 5e6, time.UTC)
	s := &fakeStore{}
	for _, text := range []string{"", "plain", `"quoted" \ back`, "tab\t nul\x00 del\x7f", "имя 名前 🎬", "<b>&amp;</b>", "\u2028", "bad \xff"} {
		s.records = append(s.records, records.Record{ID: text, Name: text, Content: text, Status: records.Done, Job: text, Attempts: 7, SentAt: at, StoredAt: at, FinishedAt: at.Add(time.Microsecond)})
	}
	s.records = append(s.records, records.Record{Status: records.Processing})
	a := request(t, http.MethodGet, serve(t, &fakePublisher{}, s)+"/data", "", "")
	want, err := json.Marshal(s.records)
	require.NoError(t, err)
	require.JSONEq(t, string(want), a.body)
}

func TestDataQuery(t *testing.T) {
	t.Parallel()
	s := &fakeStore{}
	a := request(t, http.MethodGet, serve(t, &fakePublisher{}, s)+"/data?limit=3&after=id&name=a%26b", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, records.Query{Limit: 3, After: "id", Name: "a&b", Settled: true}, s.asked)

	for query, detail := range map[string]string{
		"limit=0":         "limit must be a whole number from 1",
		"limit=-1":        "limit must be",
		"limit=x":         "limit must be",
		"limit=":          "limit must be",
		"limit=1&limit=2": "limit is given more than once",
		"offset=1":        `unknown field "offset"; only limit, after, name are allowed`,
		"name=%zz":        "not URL-encoded",
	} {
		a := request(t, http.MethodGet, serve(t, &fakePublisher{}, &fakeStore{})+"/data?"+query, "", "")
		requireProblem(t, a, http.StatusBadRequest, detail)
	}
	s.err = fmt.Errorf("%w: nobody", records.ErrUnknown)
	a = request(t, http.MethodGet, serve(t, &fakePublisher{}, s)+"/data?after=nobody", "", "")
	requireProblem(t, a, http.StatusBadRequest, "nobody")
	s.err = fmt.Errorf("%w: \xff", records.ErrUnknown)
	a = request(t, http.MethodGet, serve(t, &fakePublisher{}, s)+"/data?after=%ff", "", "")
	requireProblem(t, a, http.StatusBadRequest, "\ufffd")
}

func TestDataWhenMongoDBIsAway(t *testing.T) {
	t.Parallel()
	s := &fakeStore{err: errors.New("dial tcp 10.0.0.7:27017")}
	a := request(t, http.MethodGet, serve(t, &fakePublisher{}, s)+"/data", "", "")
	requireProblem(t, a, http.StatusServiceUnavailable, "MongoDB is not available")
	require.NotContains(t, a.body, "10.0.0.7")
}

// MongoDB goes away after the answer has begun.
func TestHalfOfTheDataNeverLooksComplete(t *testing.T) {
	t.Parallel()
	s := &fakeStore{err: errors.New("cursor lost")}
	for i := range 1000 {
		s.records = append(s.records, records.Record{ID: fmt.Sprint(i), Content: strings.Repeat("x", 100)})
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, serve(t, &fakePublisher{}, s)+"/data", nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode, "the answer has begun")
	body, err := io.ReadAll(response.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotEmpty(t, body)
	require.False(t, json.Valid(body))
}
