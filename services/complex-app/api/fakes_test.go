package api_test

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

type fakePublisher struct {
	mu        sync.Mutex
	published []contract.Message
	err       error // what Publish answers
	takes     int   // after so many messages
	connects  atomic.Uint64
}

func (p *fakePublisher) Publish(_ context.Context, m contract.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil && len(p.published) >= p.takes {
		return p.err
	}
	p.published = append(p.published, m)
	return nil
}

func (p *fakePublisher) Connects() uint64 { return p.connects.Load() }

type fakeStore struct {
	records []records.Record
	err     error // comes after the records
	asked   records.Query
	jobs    map[string]string
	away    error // what Jobs answers
}

type fakeDeadLetters struct {
	dead  []queue.DeadLetter
	n     int
	err   error
	limit int    // asked of List
	id    string // asked of Redrive and Discard
	looks atomic.Int64
	wait  chan struct{} // until which List waits, if there is one
}

func (d *fakeDeadLetters) List(_ context.Context, limit int) ([]queue.DeadLetter, error) {
	d.limit = limit
	d.looks.Add(1)
	if d.wait != nil {
		<-d.wait
	}
	return d.dead, d.err
}

func (d *fakeDeadLetters) Redrive(_ context.Context, id string) (int, error) {
	d.id = id
	return d.n, d.err
}

func (d *fakeDeadLetters) Discard(ctx context.Context, id string) (int, error) {
	return d.Redrive(ctx, id)
}

func (s *fakeStore) Jobs(context.Context, []string) (map[string]string, error) { return s.jobs, s.away }

func (s *fakeStore) List(_ context.Context, q records.Query) iter.Seq2[records.Record, error] {
	s.asked = q
	return func(yield func(records.Record, error) bool) {
		for _, r := range s.records {
			if !yield(r, nil) {
				return
			}
		}
		if s.err != nil {
			yield(records.Record{}, s.err)
		}
	}
}

// serve starts the API on a real socket: some of what it promises, such as
// cutting an answer off, exists only there.
func serve(t *testing.T, p *fakePublisher, s *fakeStore) string {
	t.Helper()
	return serveAll(t, p, s, &fakeDeadLetters{})
}

func serveAll(t *testing.T, p *fakePublisher, s *fakeStore, d *fakeDeadLetters) string {
	t.Helper()
	server := httptest.NewServer(api.New(p, s, d, slog.New(slog.DiscardHandler), nil, nil))
	t.Cleanup(server.Close)
	return server.URL
}

type answer struct {
	status int
	header http.Header
	body   string
}

func request(t *testing.T, method, url, contentType, body string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	a := answer{response.StatusCode, response.Header, string(content)}
	requireDescribed(t, r, body, a)
	return a
}

// requireProblem checks that the answer is a problem document, and returns its
// members.
func requireProblem(t *testing.T, a answer, status int, detail string) map[string]any {
	t.Helper()
	require.Equal(t, status, a.status, a.body)
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	var members map[string]any
	require.NoError(t, json.Unmarshal([]byte(a.body), &members))
	require.EqualValues(t, status, members["status"])
	require.Equal(t, http.StatusText(status), members["title"])
	require.Contains(t, members["detail"], detail)
	if status == http.StatusServiceUnavailable {
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
	return members
}

func newHandler(p *fakePublisher, s *fakeStore) http.Handler {
	return api.New(p, s, &fakeDeadLetters{}, slog.New(slog.DiscardHandler), nil, nil)
}

func newSlowHandler(s *slowServers) http.Handler {
	return api.New(s, s, &fakeDeadLetters{}, slog.New(slog.DiscardHandler), nil, nil)
}

// do calls the handler without a socket, for input that no client would send.
func do(h http.Handler, method, path, query, contentType, body string) int {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.URL.RawQuery = query
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}
