package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
)

const ndjson = "application/x-ndjson"

type batchAnswer struct {
	Accepted, Refused int
	Errors            []struct {
		Line       int
		ID, Detail string
	}
	Detail string
}

func sendBatch(t *testing.T, p *fakePublisher, body string, header ...string) (answer, batchAnswer) {
	t.Helper()
	a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send/batch", ndjson+"; charset=utf-8", body, header...)
	var b batchAnswer
	require.NoError(t, json.Unmarshal([]byte(a.body), &b))
	return a, b
}

func ids(p *fakePublisher) (all []string) {
	for _, m := range p.published {
		all = append(all, m.ID)
	}
	slices.Sort(all)
	return all
}

func TestBatch(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	a, b := sendBatch(t, p, "{\"name\":\"имя\",\"content\":\"<b>\"}\n\n  \r\n{\"name\":\"b\"}\r\n{\"name\":\"c\"}", "Idempotency-Key", "k")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	require.Equal(t, 3, b.Accepted)
	require.Zero(t, b.Refused)
	require.Equal(t, []string{"k-1", "k-4", "k-5"}, ids(p), "by the number of the line, so that the same batch has the same ids")
	for _, m := range p.published {
		if m.ID == "k-1" {
			require.Equal(t, contract.Event{Name: "имя", Content: "<b>"}, m.Event)
		}
	}
}

func TestBatchWithoutAKey(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	a, b := sendBatch(t, p, strings.Repeat(`{"name":"a"}`+"\n", 1000))
	require.Equal(t, http.StatusAccepted, a.status)
	require.Equal(t, 1000, b.Accepted)
	require.Len(t, slices.Compact(ids(p)), 1000)
	id, err := uuid.Parse(p.published[0].ID)
	require.NoError(t, err)
	require.EqualValues(t, 7, id.Version())
}

// 202 means all lines: a client that looks at nothing else must not miss an invalid one.
func TestAnInvalidLineDoesNotAffectTheOthers(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	a, b := sendBatch(t, p, strings.Join([]string{
		`{"name":"a"}`, `name=a`, `{"content":"b"}`, `{"name":"a","id":"mine"}`, `{"name":"a","name":"b"}`, "\xff",
		`{"name":"` + strings.Repeat("x", contract.MaxEventBytes) + `"}`, `{"name":"b"}`,
	}, "\n"))
	requireProblem(t, a, http.StatusUnprocessableEntity, "send the whole batch again with the same Idempotency-Key")
	require.Equal(t, 2, b.Accepted)
	require.Equal(t, 6, b.Refused)
	for i, detail := range []string{"not JSON", "name is missing", `unknown field "id"`, "name is given more than once", "not JSON", "line is longer than 65536 bytes"} {
		require.Equal(t, i+2, b.Errors[i].Line)
		require.Contains(t, b.Errors[i].Detail, detail)
		require.Empty(t, b.Errors[i].ID)
	}
	require.Len(t, p.published, 2)

	_, b = sendBatch(t, &fakePublisher{}, strings.Repeat("odd\n", 500))
	require.Equal(t, 500, b.Refused)
	require.Len(t, b.Errors, 100)
	for i, e := range b.Errors {
		require.Equal(t, i+1, e.Line, "the first of them, in order")
	}
}

func TestBatchLimits(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	a, _ := sendBatch(t, p, strings.Repeat("{\"name\":\"a\"}\n", 10_001))
	requireProblem(t, a, http.StatusRequestEntityTooLarge, "more than 10000 lines")
	a, _ = sendBatch(t, p, `{"name":"`+strings.Repeat("x", 4<<20)+`"}`)
	requireProblem(t, a, http.StatusRequestEntityTooLarge, "longer than 4194304 bytes")
	a, _ = sendBatch(t, p, "{}", "Idempotency-Key", strings.Repeat("k", 250))
	requireProblem(t, a, http.StatusBadRequest, "1 to 249 visible ASCII characters")
	require.Empty(t, p.published, "nothing of a batch that is too long is sent")

	a, b := sendBatch(t, p, strings.Repeat("{\"name\":\"a\"}\n", 10_000), "Idempotency-Key", strings.Repeat("k", 249))
	require.Equal(t, http.StatusAccepted, a.status)
	require.Equal(t, 10_000, b.Accepted)

	a = request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send/batch", asJSON, `[{"name":"a"}]`)
	requireProblem(t, a, http.StatusUnsupportedMediaType, "application/x-ndjson")
}

func TestBatchWithoutEvents(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	for _, body := range []string{"", "\n", "\n \r\n"} {
		a, _ := sendBatch(t, p, body)
		requireProblem(t, a, http.StatusBadRequest, "no events")
	}
	a, _ := sendBatch(t, p, strings.Repeat("\n", 4<<20-1)+"x") // must not be split into four million lines
	requireProblem(t, a, http.StatusRequestEntityTooLarge, "more than 10000 lines")
	a = request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send/batch?name=a", ndjson, "{}")
	requireProblem(t, a, http.StatusBadRequest, "takes no parameters")
	require.Empty(t, p.published)
}

// A client that gets this sends the whole batch again with the same key.
func TestBatchWhenRabbitMQGoesAway(t *testing.T) {
	t.Parallel()
	for err, detail := range map[error]string{
		queue.ErrUnavailable: "was not accepted",
		queue.ErrUnconfirmed: "may have been accepted",
	} {
		p := &fakePublisher{takes: 500, err: fmt.Errorf("%w: 10.0.0.7", err)}
		a, b := sendBatch(t, p, "odd\n"+strings.Repeat("{\"name\":\"a\"}\n", 5000), "Idempotency-Key", "k")
		requireProblem(t, a, http.StatusServiceUnavailable, "send the whole batch again with the same Idempotency-Key")
		require.Equal(t, 500, b.Accepted)
		require.Equal(t, 4501, b.Refused)
		require.Equal(t, 1, b.Errors[0].Line)
		require.Contains(t, b.Errors[0].Detail, "not JSON")
		require.Contains(t, b.Errors[1].Detail, detail, "the lines that were in flight are the first")
		require.Equal(t, fmt.Sprint("k-", b.Errors[1].Line), b.Errors[1].ID)
		require.NotContains(t, a.body, "10.0.0.7")
		require.Len(t, p.published, 500)
	}
}

func TestBatchWithoutRabbitMQ(t *testing.T) {
	t.Parallel()
	a, b := sendBatch(t, &fakePublisher{err: queue.ErrUnavailable}, `{"name":"a"}`)
	requireProblem(t, a, http.StatusServiceUnavailable, "RabbitMQ is not available")
	require.Zero(t, b.Accepted)
	a, b = sendBatch(t, &fakePublisher{err: errors.New("10.0.0.7 said no")}, `{"name":"a"}`)
	require.Equal(t, http.StatusInternalServerError, a.status)
	require.Zero(t, b.Accepted)
}

func FuzzBatch(f *testing.F) {
	f.Add("{\"name\":\"a\"}\n\n{\"name\":\"b\"}", "k")
	f.Add("\ufeff{\"name\":\"\\ud83d\"}\r\nodd", "")
	p := &fakePublisher{}
	handler := newHandler(p, &fakeStore{})
	f.Fuzz(func(t *testing.T, body, key string) {
		r := httptest.NewRequest(http.MethodPost, "/send/batch", strings.NewReader(body))
		r.Header.Set("Content-Type", ndjson)
		if key != "" {
			r.Header.Set("Idempotency-Key", key)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Contains(t, []int{http.StatusAccepted, http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity}, w.Code)
		var b batchAnswer
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &b))
		require.Len(t, p.published, b.Accepted)
		for _, m := range p.published {
			require.NoError(t, m.Validate())
			require.LessOrEqual(t, len(m.ID), 255)
		}
		p.published = nil
	})
}
