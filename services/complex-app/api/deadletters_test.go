package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/contract/queue"
)

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	d := &fakeDeadLetters{dead: []queue.DeadLetter{
		{ID: "1", Body: "<b>", Reason: "not JSON", Attempts: 1, Job: "processor-job-a", DeadAt: at},
		{ID: "2", Body: `{"name":"a"}`, Reason: "died", Attempts: 5, SentAt: at, DeadAt: at},
	}}
	s := &fakeStore{jobs: map[string]string{"1": "not asked for", "2": "processor-job-b"}}
	url := serveAll(t, &fakePublisher{}, s, d)
	want := `[{"id":"1","body":"<b>","reason":"not JSON","attempts":1,"job":"processor-job-a","deadAt":"2026-11-01T12:00:00Z"},
		{"id":"2","body":"{\"name\":\"a\"}","reason":"died","attempts":5,"job":%q,"sentAt":"2026-11-01T12:00:00Z","deadAt":"2026-11-01T12:00:00Z"}]`
	a := request(t, http.MethodGet, url+"/dead-letters", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.JSONEq(t, fmt.Sprintf(want, "processor-job-b"), a.body)
}

// What another program has sent need not be UTF-8, and must not hide the other dead letters.
func TestDeadLettersThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	d := &fakeDeadLetters{dead: []queue.DeadLetter{{ID: "a\xff", Reason: "\xff"}}}
	url := serveAll(t, &fakePublisher{}, &fakeStore{}, d)
	a := request(t, http.MethodGet, url+"/dead-letters", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.JSONEq(t, `[{"id":"a\ufffd","body":"","reason":"\ufffd","attempts":0,"job":""}]`, a.body)
	d.err = fmt.Errorf("%w: a\xff", queue.ErrNoDeadLetter)
	requireProblem(t, request(t, http.MethodPost, url+"/dead-letters/redrive?id=a%ff", "", ""), http.StatusNotFound, "no dead letter with this id: a\ufffd")
}

func TestDeadLettersWithoutMongoDB(t *testing.T) {
	t.Parallel()
	d := &fakeDeadLetters{dead: []queue.DeadLetter{{ID: "1"}}}
	a := request(t, http.MethodGet, serveAll(t, &fakePublisher{}, &fakeStore{away: errAway}, d)+"/dead-letters", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.JSONEq(t, `[{"id":"1","body":"","reason":"","attempts":0,"job":""}]`, a.body)
}

func TestRedrive(t *testing.T) {
	t.Parallel()
	d := &fakeDeadLetters{n: 3}
	url := serveAll(t, &fakePublisher{}, &fakeStore{}, d) + "/dead-letters/redrive"
	a := request(t, http.MethodPost, url, "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.JSONEq(t, `{"redriven":3}`, a.body)
	require.Empty(t, d.id)
	require.Equal(t, http.StatusOK, request(t, http.MethodPost, url+"?id=a%26b", "", "").status)
	require.Equal(t, "a&b", d.id)

	require.Equal(t, http.StatusOK, request(t, http.MethodPost, url, form, "id=b").status) // curl -d id=b
	require.Equal(t, "b", d.id)
	requireProblem(t, request(t, http.MethodPost, url+"?id=a", form, "id=b"), http.StatusBadRequest, "a query and a body")
	requireProblem(t, request(t, http.MethodPost, url, asJSON, `{"id":"b"}`), http.StatusUnsupportedMediaType, "form-urlencoded")

	requireProblem(t, request(t, http.MethodPost, url+"?id=", "", ""), http.StatusBadRequest, "id is empty")
	requireProblem(t, request(t, http.MethodPost, url+"?ids=1", "", ""), http.StatusBadRequest, `unknown field "ids"`)
	requireProblem(t, request(t, http.MethodGet, url, "", ""), http.StatusMethodNotAllowed, "Allow")
	d.err = fmt.Errorf("%w: a", queue.ErrNoDeadLetter)
	requireProblem(t, request(t, http.MethodPost, url+"?id=a", "", ""), http.StatusNotFound, "no dead letter with this id: a")
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	d := &fakeDeadLetters{n: 3}
	url := serveAll(t, &fakePublisher{}, &fakeStore{}, d) + "/dead-letters"
	a := request(t, http.MethodDelete, url, "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.JSONEq(t, `{"discarded":3}`, a.body)
	require.Empty(t, d.id)
	require.Equal(t, http.StatusOK, request(t, http.MethodDelete, url+"?id=a%26b", "", "").status)
	require.Equal(t, "a&b", d.id)

	requireProblem(t, request(t, http.MethodDelete, url+"?id=", "", ""), http.StatusBadRequest, "id is empty")
	requireProblem(t, request(t, http.MethodDelete, url+"?ids=1", "", ""), http.StatusBadRequest, `unknown field "ids"`)
	requireProblem(t, request(t, http.MethodDelete, url, "", "", "Sec-Fetch-Site", "cross-site"), http.StatusForbidden, "another site")
	a = request(t, http.MethodPut, url, "", "")
	requireProblem(t, a, http.StatusMethodNotAllowed, "Allow")
	require.Equal(t, []string{"GET", "DELETE", "HEAD"}, a.header.Values("Allow"))
	d.err = fmt.Errorf("%w: a", queue.ErrNoDeadLetter)
	requireProblem(t, request(t, http.MethodDelete, url+"?id=a", "", ""), http.StatusNotFound, "no dead letter with this id: a")
}

func TestDeadLettersThatAreCutShort(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		then string
	}{
		"the time was up":      {fmt.Errorf("%w: %w", queue.ErrCutShort, context.DeadlineExceeded), "not all dead letters were seen: the time was up, perhaps while others were at them"},
		"RabbitMQ went away":   {fmt.Errorf("%w: %w", queue.ErrUnavailable, errAway), "RabbitMQ is not available"},
		"others were at them":  {fmt.Errorf("%w: others look at them", queue.ErrCutShort), "not all dead letters were seen: the time was up, perhaps while others were at them"},
		"both, in this order ": {fmt.Errorf("%w: %w", queue.ErrUnavailable, queue.ErrCutShort), "not all dead letters were seen: the time was up, perhaps while others were at them"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serveAll(t, &fakePublisher{}, &fakeStore{}, &fakeDeadLetters{n: 12, err: c.err}) + "/dead-letters"
			p := requireProblem(t, request(t, http.MethodPost, url+"/redrive", "", ""), http.StatusServiceUnavailable, "12 dead letters were sent back; then "+c.then)
			require.EqualValues(t, 12, p["done"])
			p = requireProblem(t, request(t, http.MethodDelete, url, "", ""), http.StatusServiceUnavailable, "12 dead letters were discarded; then "+c.then)
			require.EqualValues(t, 12, p["done"])
			requireProblem(t, request(t, http.MethodGet, url, "", ""), http.StatusServiceUnavailable, c.then)
		})
	}
}

// An answer may have many megabytes.
func TestOneLooksAtTheDeadLettersAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDeadLetters{dead: []queue.DeadLetter{{ID: "1"}}, wait: make(chan struct{})}
		h := api.New(&fakePublisher{}, &fakeStore{}, d, slog.New(slog.DiscardHandler), nil, nil)
		first := make(chan int, 1)
		go func() { first <- do(h, http.MethodGet, "/dead-letters", "", "", "") }()
		synctest.Wait()
		require.Equal(t, http.StatusServiceUnavailable, do(h, http.MethodGet, "/dead-letters", "", "", ""))
		require.EqualValues(t, 1, d.looks.Load())
		close(d.wait)
		require.Equal(t, http.StatusOK, <-first)
		require.Equal(t, http.StatusOK, do(h, http.MethodGet, "/dead-letters", "", "", ""))
	})
}

// stuckDeadLetters answer when their time is up.
type stuckDeadLetters struct{}

func (d stuckDeadLetters) List(ctx context.Context, _ int) ([]queue.DeadLetter, error) {
	_, err := d.Redrive(ctx, "")
	return nil, err
}

func (d stuckDeadLetters) Discard(ctx context.Context, id string) (int, error) {
	return d.Redrive(ctx, id)
}

func (stuckDeadLetters) Redrive(ctx context.Context, _ string) (int, error) {
	<-ctx.Done()
	return 0, fmt.Errorf("%w: %w", queue.ErrCutShort, context.Cause(ctx))
}

func TestDeadLettersTakeAMinuteAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := api.New(&fakePublisher{}, &fakeStore{}, stuckDeadLetters{}, slog.New(slog.DiscardHandler), nil, nil)
		for path, method := range map[string]string{
			"/dead-letters": http.MethodGet, "/dead-letters/redrive": http.MethodPost, "/dead-letters?id=a": http.MethodDelete,
		} {
			began := time.Now()
			require.Equal(t, http.StatusServiceUnavailable, do(h, method, path, "", "", ""))
			require.Equal(t, time.Minute, time.Since(began), path)
		}
	})
}

func TestDeadLettersWithoutRabbitMQ(t *testing.T) {
	t.Parallel()
	d := &fakeDeadLetters{err: fmt.Errorf("%w: %w", queue.ErrUnavailable, errAway)}
	url := serveAll(t, &fakePublisher{}, &fakeStore{}, d)
	for _, a := range []answer{
		request(t, http.MethodGet, url+"/dead-letters", "", ""),
		request(t, http.MethodPost, url+"/dead-letters/redrive", "", ""),
	} {
		requireProblem(t, a, http.StatusServiceUnavailable, "RabbitMQ is not available")
		require.NotContains(t, a.body, "10.0.0.7")
	}
}
