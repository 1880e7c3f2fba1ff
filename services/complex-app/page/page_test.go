package page_test

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/page"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

var errAway = errors.New("away")

// servers are both servers, and count what is asked of them.
type servers struct {
	mu      sync.Mutex
	counts  queue.Counts
	letters []queue.DeadLetter
	stored  map[string]records.Record
	noMongo error
	noQueue error
	alarm   error
	hangs   bool // MongoDB accepts queries and answers none

	counted, changed, listed, read, closed int
}

func (s *servers) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *servers) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alarm
}

type counter struct{ *servers }

func (c counter) Count(context.Context) (queue.Counts, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counted++
	return c.counts, c.noQueue
}

func (c counter) Close() { c.set(func() { c.closed++ }) }

func (s *servers) List(_ context.Context, limit int) ([]queue.DeadLetter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed++
	return slices.Clone(s.letters[:min(limit, len(s.letters))]), s.noQueue
}

func (s *servers) Changed(ctx context.Context, after time.Time, limit int64, states ...records.Status) iter.Seq2[records.Record, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed++
	var found []records.Record
	for _, r := range s.stored {
		if slices.Contains(states, r.Status) && (after.IsZero() || r.ChangedAt.After(after)) {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b records.Record) int {
		return cmp.Or(b.ChangedAt.Compare(a.ChangedAt), cmp.Compare(a.ID, b.ID))
	})
	found = found[:min(int(limit), len(found))]
	s.read += len(found)
	err, hangs := s.noMongo, s.hangs
	return func(yield func(records.Record, error) bool) {
		if hangs {
			<-ctx.Done()
			err = ctx.Err()
		}
		if err != nil {
			yield(records.Record{}, err)
			return
		}
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (s *servers) Count(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.stored)), s.noMongo
}

// put stores a record, changed now.
func (s *servers) put(r records.Record) {
	s.set(func() {
		r.ChangedAt, r.StoredAt = time.Now(), time.Now()
		s.stored[r.ID] = r
	})
}

func newServers() *servers { return &servers{stored: map[string]records.Record{}} }

func newPage(s *servers) (*page.Page, http.Handler) {
	p := page.New(s, counter{s}, s, s, slog.New(slog.DiscardHandler))
	r := chi.NewRouter()
	p.Mount(r)
	return p, r
}

// inBubble runs a test in a time of its own, with a page that looks at the servers.
func inBubble(t *testing.T, s *servers, f func(t *testing.T, handler http.Handler)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p, handler := newPage(s)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); p.Run(ctx) }()
		synctest.Wait()
		f(t, handler)
		stop()
		<-ended
		s.set(func() { require.Equal(t, 1, s.closed) })
	})
}

// after lets time pass, and everything happen that is due.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func get(t *testing.T, handler http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

// tab is what a page knows.
type tab struct {
	t       *testing.T
	cursors map[string]string // by what asks for it
	status  *page.Status
	records map[string]records.Record
	runs    map[string]int
	dead    []string // ids
	depth   []any
	at      time.Time

	wholes, delivered, deadDelivered int
}

func newTab(t *testing.T) *tab { return &tab{t: t, cursors: map[string]string{}} }

// poll asks a complex-app for what has changed.
func (p *tab) poll(handler http.Handler) *tab {
	p.t.Helper()
	query := url.Values{}
	for _, cursor := range p.cursors {
		query.Add("after", cursor)
	}
	w := get(p.t, handler, "/events?"+query.Encode())
	require.Equal(p.t, http.StatusOK, w.Code)
	require.Equal(p.t, "application/json", w.Header().Get("Content-Type"))
	require.Equal(p.t, "no-store", w.Header().Get("Cache-Control"))
	var answer struct {
		At      int64
		Changes struct {
			Cursor  string
			Whole   bool
			Status  *page.Status
			Depth   []struct{ Ready *int }
			Records []struct {
				records.Record
				Runs []records.Run
			}
			Dead []queue.DeadLetter
		}
	}
	require.NoError(p.t, json.Unmarshal(w.Body.Bytes(), &answer))
	c := answer.Changes
	name, _, ok := strings.Cut(c.Cursor, "-")
	require.True(p.t, ok)
	p.cursors[name], p.status, p.at = c.Cursor, c.Status, time.UnixMilli(answer.At)
	if c.Whole {
		p.wholes++
		p.records, p.runs, p.depth = map[string]records.Record{}, map[string]int{}, nil
		require.NotNil(p.t, c.Dead)
	}
	for _, d := range c.Depth {
		p.depth = append(p.depth, number(d.Ready))
	}
	for _, r := range c.Records {
		p.delivered++
		p.records[r.ID], p.runs[r.ID] = r.Record, len(r.Runs)
	}
	if c.Dead != nil {
		p.deadDelivered++
		p.dead = nil
		for _, d := range c.Dead {
			p.dead = append(p.dead, d.ID)
		}
	}
	return p
}

func number[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}

// numbers returns what /status says.
func numbers(s *page.Status) []any {
	return []any{s.RabbitMQ, s.MongoDB, number(s.Ready), number(s.InWork), number(s.Dead), number(s.Records), number(s.Jobs)}
}

const (
	up   = "up"
	down = "down"
	tick = 1100 * time.Millisecond // longer than the pause between two looks
)

func TestAHundredPagesCostNoMoreThanNone(t *testing.T) {
	t.Parallel()
	for _, pages := range []int{0, 1, 100} {
		t.Run(fmt.Sprint(pages), func(t *testing.T) {
			t.Parallel()
			s := newServers()
			inBubble(t, s, func(t *testing.T, handler http.Handler) {
				tabs := make([]*tab, pages)
				for i := range tabs {
					tabs[i] = newTab(t)
				}
				for range 60 {
					for _, p := range tabs {
						p.poll(handler)
					}
					after(time.Second)
				}
				s.set(func() {
					require.InDelta(t, 60, s.counted, 5)
					require.InDelta(t, 60, s.changed, 5)
					require.Zero(t, s.listed)
				})
			})
		})
	}
}

func TestALifeOfAMessage(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		p := newTab(t).poll(handler)
		require.Equal(t, []any{up, up, 0, 0, 0, int64(0), 0}, numbers(p.status))
		require.Equal(t, 1, p.wholes)
		require.Equal(t, time.Now(), p.at.Local())

		s.set(func() { s.counts.Ready = 1 })
		after(tick)
		require.Equal(t, 1, number(p.poll(handler).status.Ready))

		s.set(func() { s.counts.Ready = 0 })
		s.put(records.Record{ID: "a", Status: records.Processing, Job: "job-1", Attempts: 1, Runs: []records.Run{{Job: "job-1", Attempt: 1, ClaimedAt: time.Now()}}})
		after(tick)
		require.Equal(t, []any{up, up, 0, 1, 0, int64(1), 1}, numbers(p.poll(handler).status))
		require.Equal(t, records.Processing, p.records["a"].Status)
		require.Equal(t, 1, p.runs["a"])

		s.put(records.Record{ID: "a", Status: records.Done, Job: "job-1"})
		after(tick)
		require.Equal(t, []any{up, up, 0, 0, 0, int64(1), 0}, numbers(p.poll(handler).status))
		require.Equal(t, records.Done, p.records["a"].Status)
		require.Equal(t, []any{0, 1, 0}, p.depth)

		for range 60 {
			after(time.Second)
			p.poll(handler)
		}
		require.Equal(t, 2, p.delivered, "each change once")
		require.Equal(t, 1, p.wholes)

		late := newTab(t).poll(handler)
		require.Equal(t, p.records, late.records, "a page that is opened late knows the same")
		require.Equal(t, p.depth, late.depth)
	})
}

func TestStates(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		p := newTab(t)
		for _, status := range []records.Status{records.Processing, records.Retrying, records.Processing, records.Failed, records.Done} {
			s.put(records.Record{ID: "a", Status: status, Job: "job-1", Error: "boom"})
			after(tick)
			require.Equal(t, status, p.poll(handler).records["a"].Status)
			require.Equal(t, "boom", p.records["a"].Error)
			inWork := 0
			if status == records.Processing {
				inWork = 1
			}
			require.Equal(t, inWork, number(p.status.InWork))
			require.Equal(t, p.records, newTab(t).poll(handler).records)
		}
	})
}

// Any of two complex-apps may answer.
func TestTwoComplexApps(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, one http.Handler) {
		second, two := newPage(s)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); second.Run(ctx) }()
		s.put(records.Record{ID: "a", Status: records.Done})
		after(tick)
		p := newTab(t).poll(one).poll(two)
		require.Equal(t, 2, p.wholes)
		for i := range 20 {
			s.put(records.Record{ID: fmt.Sprint(i), Status: records.Done})
			after(tick)
			p.poll([]http.Handler{one, two}[i%2])
			require.Contains(t, p.records, fmt.Sprint(i))
		}
		require.Equal(t, 2, p.wholes)
		require.Less(t, p.delivered, 50, "from each what has changed since it was asked")
		stop()
		<-ended
		s.set(func() { s.closed-- })
	})
}

// It may start while MongoDB is away, and must not empty the pages that are open.
func TestAComplexAppThatKnowsNoRecordsYet(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		s.put(records.Record{ID: "a", Status: records.Done})
		after(tick)
		p := newTab(t).poll(handler)
		_, fresh := newPage(s) // it has not looked
		require.Contains(t, p.poll(fresh).records, "a")
		require.Equal(t, 1, p.wholes)
	})
}

func TestCursorsThatNobodyMade(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		s.put(records.Record{ID: "a", Status: records.Done})
		after(tick)
		name := ""
		for name = range newTab(t).poll(handler).cursors {
		}
		for _, cursor := range []string{"", "x", name, name + "-", name + "-x", name + "--1", name + "-999", name + "-99999999999999999999999", "other-1"} {
			p := newTab(t)
			p.cursors[""] = cursor
			require.Contains(t, p.poll(handler).records, "a", cursor)
			require.Equal(t, 1, p.wholes, cursor)
		}
	})
}

func TestServersGoAwayAndComeBack(t *testing.T) {
	t.Parallel()
	s := newServers()
	s.counts.Ready = 2
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		s.put(records.Record{ID: "a", Status: records.Processing, Job: "job-1"})
		after(tick)
		p := newTab(t).poll(handler)
		s.set(func() { s.noQueue = errAway })
		after(tick)
		require.Equal(t, []any{down, up, nil, 1, nil, int64(1), 1}, numbers(p.poll(handler).status))
		s.set(func() { s.noQueue, s.noMongo = nil, errAway })
		after(tick)
		require.Equal(t, []any{up, down, 2, nil, 0, nil, nil}, numbers(p.poll(handler).status))
		s.put(records.Record{ID: "a", Status: records.Done, Job: "job-1"})
		s.set(func() { s.noMongo = nil })
		after(tick)
		require.Equal(t, []any{up, up, 2, 0, 0, int64(1), 0}, numbers(p.poll(handler).status))
		require.Equal(t, records.Done, p.records["a"].Status)
		require.Equal(t, []any{2, nil, 2}, p.depth)
		require.Equal(t, 1, p.wholes)

		s.set(func() { s.hangs = true })
		after(time.Minute)
		require.Equal(t, []any{up, down, 2, nil, 0, nil, nil}, numbers(p.poll(handler).status), "no look is recent")
		s.set(func() { s.hangs = false })
		after(20 * time.Second)
		require.Equal(t, up, p.poll(handler).status.MongoDB)
	})
}

// /status has the last look, and answers without waiting whatever has become of the
// servers.
func TestStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rabbitMQ, alarm, mongoDB error
		want                     string
	}{
		"both are there": {want: `{"rabbitMQ":"up","mongoDB":"up","ready":3,"dead":1,"records":2,"inWork":1,"jobs":1}`},
		"an alarm":       {alarm: errAway, want: `{"rabbitMQ":"down","mongoDB":"up","ready":3,"dead":1,"records":2,"inWork":1,"jobs":1}`},
		"no RabbitMQ":    {rabbitMQ: errAway, want: `{"rabbitMQ":"down","mongoDB":"up","ready":null,"dead":null,"records":2,"inWork":1,"jobs":1}`},
		"no MongoDB":     {mongoDB: errAway, want: `{"rabbitMQ":"up","mongoDB":"down","ready":3,"dead":1,"records":null,"inWork":null,"jobs":null}`},
		"neither":        {rabbitMQ: errAway, mongoDB: errAway, want: `{"rabbitMQ":"down","mongoDB":"down","ready":null,"dead":null,"records":null,"inWork":null,"jobs":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServers()
			s.noQueue, s.alarm, s.noMongo = c.rabbitMQ, c.alarm, c.mongoDB
			s.counts, s.letters = queue.Counts{Ready: 3, Dead: 1}, []queue.DeadLetter{{ID: "3"}}
			s.stored["1"] = records.Record{ID: "1", Status: records.Done, Job: "a"}
			s.stored["2"] = records.Record{ID: "2", Status: records.Processing, Job: "b"}
			inBubble(t, s, func(t *testing.T, handler http.Handler) {
				after(tick)
				w := get(t, handler, "/status")
				require.Equal(t, http.StatusOK, w.Code)
				require.Equal(t, "application/json", w.Header().Get("Content-Type"))
				var got map[string]any
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
				require.Contains(t, got, "time")
				delete(got, "time")
				body, err := json.Marshal(got)
				require.NoError(t, err)
				require.JSONEq(t, c.want, string(body))
			})
		})
	}
}

func TestBeforeTheFirstLook(t *testing.T) {
	t.Parallel()
	_, handler := newPage(newServers())
	require.Nil(t, newTab(t).poll(handler).status, "a page must not say that something is down")
	require.Contains(t, get(t, handler, "/status").Body.String(), `"rabbitMQ":"down","mongoDB":"down","ready":null`)
}

// Whoever looks at the dead letters has them for a moment, and the broker counts
// fewer.
func TestDeadLettersAreListedWhenTheyChange(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		p := newTab(t)
		watch := func(d time.Duration) {
			for ; d > 0; d -= time.Second {
				p.poll(handler)
				after(time.Second)
			}
			p.poll(handler)
		}
		s.put(records.Record{ID: "a", Status: records.Processing, Job: "job-1"})
		s.put(records.Record{ID: "b", Status: records.Processing, Job: "job-2"})
		watch(tick)
		require.Equal(t, 2, number(p.status.InWork))
		s.set(func() {
			s.counts.Dead, s.letters = 1, []queue.DeadLetter{{ID: "a", Reason: strings.Repeat("я", 1000)}}
		})
		watch(5 * time.Second)
		require.Equal(t, []string{"a"}, p.dead)
		require.Equal(t, []any{1, 1}, []any{number(p.status.Dead), number(p.status.InWork)}, "a dead one is not in work")
		s.set(func() { require.Equal(t, 1, s.listed) })

		for range 5 {
			s.set(func() { s.counts.Dead = 0 })
			watch(time.Second)
			s.set(func() { s.counts.Dead = 1 })
			watch(2 * time.Second)
			require.Equal(t, 1, number(p.status.Dead))
		}
		s.set(func() { require.Equal(t, 1, s.listed) })
		require.Equal(t, 2, p.deadDelivered, "none, and the one")

		s.set(func() { s.counts.Dead, s.letters = 0, nil })
		watch(5 * time.Second)
		require.Empty(t, p.dead)
		require.Equal(t, []any{0, 2}, []any{number(p.status.Dead), number(p.status.InWork)})

		s.set(func() { s.counts.Dead = 300; s.letters = make([]queue.DeadLetter, 300) })
		watch(2 * time.Second)
		require.Len(t, p.dead, 200)
		require.Equal(t, []any{300, nil, nil}, []any{number(p.status.Dead), number(p.status.InWork), number(p.status.Jobs)},
			"which of the records in work are among the others is not known")
		watch(time.Minute)
		s.set(func() { require.InDelta(t, 4, s.listed, 1, "and now and then, as they may be others") })

		s.set(func() { s.letters[0].ID, s.listed = "redriven, and dead again", 0 })
		watch(30 * time.Second)
		require.Contains(t, p.dead, "redriven, and dead again")
	})
}

// On some brokers each look at a dead letter counts as a delivery.
func TestDeadLettersAreLeftAloneWhenNobodyWatches(t *testing.T) {
	t.Parallel()
	s := newServers()
	s.counts.Dead, s.letters = 1, make([]queue.DeadLetter, 1)
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		after(time.Hour)
		s.set(func() { require.Equal(t, 1, s.listed, "once, to know which they are") })
		require.Len(t, newTab(t).poll(handler).dead, 1)
	})
}

func TestMoreRecordsThanAreKept(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		s.put(records.Record{ID: "long at work", Status: records.Processing, Job: "job"})
		for i := range 1500 {
			after(time.Millisecond)
			s.put(records.Record{ID: fmt.Sprint("early ", i), Status: records.Done, Name: strings.Repeat("ы", 30_000)})
		}
		after(2 * tick)
		p := newTab(t).poll(handler)
		require.Len(t, p.records, 1000)
		require.Contains(t, p.records, "long at work")
		require.NotContains(t, p.records, "early 0")
		require.Contains(t, p.records, "early 1499")
		require.Equal(t, strings.Repeat("ы", 150)+"…", p.records["early 1499"].Name)
		require.EqualValues(t, 1501, number(p.status.Records))

		for i := range 1200 { // more in a second than one look reads
			s.put(records.Record{ID: fmt.Sprint("late ", i), Status: records.Done})
		}
		after(2 * tick)
		require.Contains(t, p.poll(handler).records, "late 7")
		require.Len(t, p.records, 1000)
		require.Contains(t, p.records, "long at work")

		after(5 * time.Second)
		wholes := p.poll(handler).wholes
		s.set(func() { s.read = 0 })
		after(30 * time.Second)
		s.set(func() { require.Zero(t, s.read, "nothing changes, nothing is read") })

		s.set(func() { s.stored = map[string]records.Record{} })
		after(20 * time.Second)
		require.Empty(t, p.poll(handler).records, "somebody has deleted them")
		require.Equal(t, wholes+1, p.wholes)
	})
}

// Records of an earlier version do not tell when they changed.
func TestRecordsWithoutATimeOfChange(t *testing.T) {
	t.Parallel()
	s := newServers()
	s.stored["old"] = records.Record{ID: "old", Status: records.Done}
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		after(time.Minute)
		require.Contains(t, newTab(t).poll(handler).records, "old")
		s.set(func() { require.Equal(t, 1, s.read) })
	})
}

// A change may become visible after a later one.
func TestAChangeThatComesLate(t *testing.T) {
	t.Parallel()
	s := newServers()
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		early := time.Now()
		after(500 * time.Millisecond)
		s.put(records.Record{ID: "b", Status: records.Done})
		after(time.Second)
		p := newTab(t).poll(handler)
		s.set(func() { s.stored["a"] = records.Record{ID: "a", Status: records.Done, ChangedAt: early} })
		after(tick)
		require.Contains(t, p.poll(handler).records, "a")
	})
}

// All pages that ask the same at about the same time get the same bytes.
func TestAnAnswerIsEncodedOnceForAll(t *testing.T) {
	s := newServers()
	for i := range 1000 {
		s.stored[fmt.Sprint(i)] = records.Record{ID: fmt.Sprint(i), Status: records.Done}
	}
	inBubble(t, s, func(t *testing.T, handler http.Handler) {
		get(t, handler, "/events")
		allocated := testing.AllocsPerRun(10, func() { get(t, handler, "/events") })
		require.Less(t, allocated, 100.0, "and not one for each record")
	})
}

// slowReader takes nothing until it is released.
type slowReader struct {
	*httptest.ResponseRecorder
	released chan struct{}
}

func (r slowReader) Write(b []byte) (int, error) {
	<-r.released
	return r.ResponseRecorder.Write(b)
}

func TestSlowReadersTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, handler := newPage(newServers())
		released := make(chan struct{})
		var reading sync.WaitGroup
		for range 8 {
			reading.Go(func() {
				handler.ServeHTTP(slowReader{httptest.NewRecorder(), released}, httptest.NewRequest(http.MethodGet, "/events", nil))
			})
		}
		synctest.Wait() // all places are taken
		began := time.Now()
		w := get(t, handler, "/status")
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "2", w.Header().Get("Retry-After"))
		require.Equal(t, 5*time.Second, time.Since(began))
		close(released)
		reading.Wait()
		require.Equal(t, http.StatusOK, get(t, handler, "/status").Code)
	})
}

func TestFiles(t *testing.T) {
	t.Parallel()
	_, handler := newPage(newServers())
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	for path, contentType := range map[string]string{
		"/":                         "text/html; charset=utf-8",
		"/page/app.js":              "text/javascript; charset=utf-8",
		"/page/echarts.js":          "text/javascript; charset=utf-8",
		"/page/style.css":           "text/css; charset=utf-8",
		"/page/icon.svg":            "image/svg+xml",
		"/page/echarts.LICENSE.txt": "text/plain; charset=utf-8",
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			request := func(header ...string) (*http.Response, string) {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
				require.NoError(t, err)
				r.Header.Set("Accept-Encoding", "identity") // else the client asks for gzip, and takes it off
				for i := 0; i < len(header); i += 2 {
					r.Header.Set(header[i], header[i+1])
				}
				response, err := http.DefaultClient.Do(r)
				require.NoError(t, err)
				defer response.Body.Close()
				body, err := io.ReadAll(response.Body)
				require.NoError(t, err)
				return response, string(body)
			}
			plain, content := request()
			require.Equal(t, http.StatusOK, plain.StatusCode)
			require.Equal(t, contentType, plain.Header.Get("Content-Type"))
			require.Equal(t, "no-cache", plain.Header.Get("Cache-Control"))
			require.Equal(t, "nosniff", plain.Header.Get("X-Content-Type-Options"))
			policy := plain.Header.Get("Content-Security-Policy")
			require.Contains(t, policy, "default-src 'none'")
			require.NotContains(t, policy, "unsafe")
			require.NotEmpty(t, content)

			etag := plain.Header.Get("ETag")
			small := len(content) < 1024 // not worth it
			for accept, encoding := range map[string]string{
				"gzip": "gzip", "gzip, deflate, br": "gzip", "br;q=1.0, gzip;q=0.8, *;q=0.1": "gzip", "GZIP": "gzip",
				"gzip, deflate, br, zstd": "zstd", "zstd;q=0, gzip;q=0.5": "gzip",
				"": "", "identity": "", "gzip;q=0": "", "gzip;q=0.0, identity": "", "br": "", "xgzip": "",
			} {
				if small {
					encoding = ""
				}
				response, body := request("Accept-Encoding", accept)
				require.Equal(t, etag, response.Header.Get("ETag"))
				require.Equal(t, encoding, response.Header.Get("Content-Encoding"), accept)
				require.Equal(t, "Accept-Encoding", response.Header.Get("Vary"))
				require.Equal(t, content, unpack(t, body, encoding))
			}

			strong := strings.TrimPrefix(etag, "W/")
			for match, status := range map[string]int{
				etag: http.StatusNotModified, strong: http.StatusNotModified, "*": http.StatusNotModified,
				`"other", ` + etag: http.StatusNotModified, `W/"other",` + strong + `, "third"`: http.StatusNotModified,
				`"other"`: http.StatusOK, `W/"other"`: http.StatusOK, strings.Trim(strong, `"`): http.StatusOK,
			} {
				for _, accept := range []string{"identity", "gzip"} {
					response, body := request("If-None-Match", match, "Accept-Encoding", accept)
					require.Equal(t, status, response.StatusCode, "%s %s", match, accept)
					require.Equal(t, status == http.StatusNotModified, body == "")
				}
			}
		})
	}
}

func unpack(t *testing.T, body, encoding string) string {
	t.Helper()
	var r io.Reader = strings.NewReader(body)
	var err error
	switch encoding {
	case "gzip":
		r, err = gzip.NewReader(r)
	case "zstd":
		r, err = zstd.NewReader(r)
	}
	require.NoError(t, err)
	content, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(content)
}

func TestNoSuchFile(t *testing.T) {
	t.Parallel()
	_, handler := newPage(newServers())
	for path, status := range map[string]int{
		"/page/nothing.js": http.StatusNotFound, "/page/": http.StatusNotFound, "/page/.": http.StatusNotFound, "/page/%00": http.StatusNotFound,
		"/page/..": http.StatusBadRequest, "/page/..%2fpage.go": http.StatusBadRequest,
	} {
		w := get(t, handler, path)
		require.Equal(t, status, w.Code, path)
		require.Empty(t, w.Header().Get("ETag"))
	}
}
