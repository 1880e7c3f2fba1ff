package live_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/live"
	"keda-p2/services/contract"
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

	counted, changed, listed, read, closed int
}

func (s *servers) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *servers) Ready() error { return nil }

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
	return s.letters[:min(limit, len(s.letters))], s.noQueue
}

func (s *servers) Changed(_ context.Context, after time.Time, limit int64, states ...records.Status) iter.Seq2[records.Record, error] {
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
	err := s.noMongo
	return func(yield func(records.Record, error) bool) {
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

// inBubble runs a test in a time of its own.
func inBubble(t *testing.T, f func(t *testing.T, s *servers, v *live.View)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &servers{stored: map[string]records.Record{}}
		v := live.New(s, counter{s}, s, s, slog.New(slog.DiscardHandler))
		defer v.Close()
		f(t, s, v)
	})
}

// tick is longer than the pause between two looks and the pause until the page is
// told.
const tick = 1500 * time.Millisecond

// after lets time pass, and everything happen that is due.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// page is what a page knows from its updates.
type page struct {
	*live.Watcher
	t         *testing.T
	status    live.Status
	records   map[string]live.Record
	waiting   []string // names
	dead      []string // ids
	depth     []any
	updates   int
	wholes    int
	delivered int // records
}

func open(t *testing.T, v *live.View) *page {
	t.Helper()
	w, err := v.Watch()
	require.NoError(t, err)
	return &page{Watcher: w, t: t, records: map[string]live.Record{}}
}

// see applies the updates that are there.
func (p *page) see() *page {
	p.t.Helper()
	for {
		select {
		case body, ok := <-p.Updates:
			if !ok {
				return p
			}
			var u struct {
				At       int64
				Whole    bool
				Status   *live.Status
				Records  []live.Record
				Accepted []struct{ ID, Name string }
				Gone     []string
				Dead     []struct{ ID string }
				Depth    []struct{ Ready *int }
			}
			require.NoError(p.t, json.Unmarshal(body, &u))
			p.updates++
			if u.Whole {
				p.wholes++
				p.records, p.waiting, p.depth = map[string]live.Record{}, nil, nil
			}
			if u.Status != nil {
				p.status = *u.Status
			}
			for _, r := range u.Records {
				p.records[r.ID] = r
				p.delivered++
				p.waiting = slices.DeleteFunc(p.waiting, func(id string) bool { return id == r.ID })
			}
			for _, a := range u.Accepted {
				if !slices.Contains(p.waiting, a.ID) {
					p.waiting = append(p.waiting, a.ID)
				}
			}
			p.waiting = slices.DeleteFunc(p.waiting, func(id string) bool { return slices.Contains(u.Gone, id) })
			if u.Dead != nil {
				p.dead = nil
				for _, d := range u.Dead {
					p.dead = append(p.dead, d.ID)
				}
			}
			for _, d := range u.Depth {
				if d.Ready == nil {
					p.depth = append(p.depth, nil)
				} else {
					p.depth = append(p.depth, *d.Ready)
				}
			}
		default:
			return p
		}
	}
}

func message(id string) contract.Message {
	return contract.Message{ID: id, Event: contract.Event{Name: "name of " + id}, SentAt: time.Now()}
}

func number[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}

func TestAHundredPagesCostNoMoreThanOne(t *testing.T) {
	t.Parallel()
	for _, pages := range []int{1, 100} {
		inBubble(t, func(t *testing.T, s *servers, v *live.View) {
			var open []*live.Watcher
			for range pages {
				w, err := v.Watch()
				require.NoError(t, err)
				go func() {
					for range w.Updates { //nolint:revive // a page that reads
					}
				}()
				open = append(open, w)
			}
			after(time.Minute)
			s.set(func() {
				require.InDelta(t, 60, s.counted, 2)
				require.InDelta(t, 60, s.changed, 2)
				require.Zero(t, s.listed)
			})
			for _, w := range open {
				w.Close()
			}
			after(time.Minute)
			s.set(func() {
				require.InDelta(t, 65, s.counted, 3, "it looks no more soon after the last one is closed")
				require.Equal(t, 1, s.closed)
			})
		})
	}
}

func TestNobodyWatches(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		v.Accepted(message("a"))
		after(time.Hour)
		s.set(func() { require.Zero(t, s.counted+s.changed+s.listed) })
	})
}

func TestALifeOfAMessage(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		p := open(t, v)
		after(tick)
		p.see()
		require.Equal(t, []any{live.Up, live.Up, 0, 0, 0, int64(0), 0}, []any{p.status.RabbitMQ, p.status.MongoDB,
			number(p.status.Ready), number(p.status.InWork), number(p.status.Dead), number(p.status.Records), number(p.status.Jobs)})

		s.set(func() { s.counts.Ready = 1 })
		v.Accepted(message("a"))
		v.Accepted(message("a")) // sent again under the same key
		after(tick)
		require.Equal(t, []string{"a"}, p.see().waiting)
		require.Equal(t, 1, number(p.status.Ready))

		s.set(func() { s.counts.Ready = 0 })
		s.put(records.Record{ID: "a", Status: records.Processing, Job: "job-1", Attempts: 1, Runs: []records.Run{{Job: "job-1", Attempt: 1, ClaimedAt: time.Now()}}})
		after(tick)
		require.Empty(t, p.see().waiting)
		require.Equal(t, records.Processing, p.records["a"].Status)
		require.Len(t, p.records["a"].Runs, 1)
		require.Equal(t, []any{0, 1, 1, int64(1)}, []any{number(p.status.Ready), number(p.status.InWork), number(p.status.Jobs), number(p.status.Records)})

		s.put(records.Record{ID: "a", Status: records.Done, Job: "job-1"})
		after(tick)
		require.Equal(t, records.Done, p.see().records["a"].Status)
		require.Equal(t, 0, number(p.status.InWork))
		require.Equal(t, []any{0, 1, 0}, p.depth[len(p.depth)-3:])

		v.Accepted(message("a")) // and once more, when all is done
		before := p.updates
		after(time.Minute)
		require.Empty(t, p.see().waiting)
		require.InDelta(t, 12, p.updates-before, 1, "only the clock, every five seconds")
		require.Equal(t, 2, p.delivered, "each change once")
		require.Equal(t, 1, p.wholes-1, "the first one, and one when all was read")
	})
}

// Another replica's view begins when the page is opened: what this one has
// accepted long ago is not shown as waiting.
func TestWhatWasAcceptedLongAgo(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		for i := range 5000 {
			v.Accepted(message(fmt.Sprint(i)))
		}
		s.set(func() { s.counts.Ready = 2 })
		p := open(t, v)
		after(2 * time.Second)
		require.Equal(t, []string{"4998", "4999"}, p.see().waiting, "the youngest wait")

		s.set(func() { s.counts.Ready = 0 })
		after(5 * time.Second)
		require.Len(t, p.see().waiting, 2, "a Job is about to store them")
		after(10 * time.Second)
		require.Empty(t, p.see().waiting)
	})
}

func TestServersGoAwayAndComeBack(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		s.put(records.Record{ID: "a", Status: records.Processing, Job: "job-1"})
		s.set(func() { s.counts.Ready = 2 })
		p := open(t, v)
		after(tick)
		p.see()
		s.set(func() { s.noQueue = errAway })
		after(2 * time.Second)
		p.see()
		require.Equal(t, []any{live.Down, live.Up, nil, nil, 1}, []any{p.status.RabbitMQ, p.status.MongoDB, number(p.status.Ready), number(p.status.Dead), number(p.status.InWork)})
		s.set(func() { s.noQueue, s.noMongo = nil, errAway })
		after(2 * time.Second)
		p.see()
		require.Equal(t, []any{live.Up, live.Down, 2, nil, nil, nil}, []any{p.status.RabbitMQ, p.status.MongoDB, number(p.status.Ready),
			number(p.status.InWork), number(p.status.Jobs), number(p.status.Records)})
		s.put(records.Record{ID: "a", Status: records.Done, Job: "job-1"})
		s.set(func() { s.noMongo = nil })
		after(2 * time.Second)
		p.see()
		require.Equal(t, live.Up, p.status.MongoDB)
		require.Equal(t, records.Done, p.records["a"].Status)
		require.Equal(t, []any{2, nil, 2}, p.depth[len(p.depth)-3:])
		require.Equal(t, live.Up, v.Status(t.Context()).MongoDB)
	})
}

// Whoever looks at the dead letters has them for a moment, and the broker counts
// fewer.
func TestDeadLettersAreListedWhenTheyChange(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		s.put(records.Record{ID: "a", Status: records.Processing, Job: "job-1"})
		s.put(records.Record{ID: "b", Status: records.Processing, Job: "job-2"})
		p := open(t, v)
		after(tick)
		require.Equal(t, 2, number(p.see().status.InWork))
		s.set(func() {
			s.counts.Dead, s.letters = 1, []queue.DeadLetter{{ID: "a", Reason: strings.Repeat("я", 1000)}}
		})
		after(5 * time.Second)
		require.Equal(t, []string{"a"}, p.see().dead)
		require.Equal(t, []any{1, 1}, []any{number(p.status.Dead), number(p.status.InWork)}, "a dead one is not in work")
		s.set(func() { require.Equal(t, 1, s.listed) })

		for range 5 {
			s.set(func() { s.counts.Dead = 0 })
			after(time.Second)
			s.set(func() { s.counts.Dead = 1 })
			after(2 * time.Second)
			require.Equal(t, 1, number(p.see().status.Dead))
		}
		s.set(func() { require.Equal(t, 1, s.listed) })

		s.set(func() { s.counts.Dead, s.letters = 0, nil })
		after(5 * time.Second)
		require.Empty(t, p.see().dead)
		require.Equal(t, []any{0, 2}, []any{number(p.status.Dead), number(p.status.InWork)})

		s.set(func() { s.counts.Dead = 300; s.letters = make([]queue.DeadLetter, 300) })
		after(time.Minute)
		require.Len(t, p.see().dead, 200)
		require.Equal(t, 300, number(p.status.Dead))
		s.set(func() { require.InDelta(t, 4, s.listed, 1, "and now and then, as they may be others") })

		s.set(func() { s.letters[0].ID, s.listed = "redriven, and dead again", 0 })
		v.Redriven()
		after(tick)
		require.Contains(t, p.see().dead, "redriven, and dead again")
	})
}

func TestMoreRecordsThanAreKept(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		s.put(records.Record{ID: "long at work", Status: records.Processing, Job: "job"})
		for i := range 1500 {
			after(time.Millisecond)
			s.put(records.Record{ID: fmt.Sprint("early ", i), Status: records.Done, Name: strings.Repeat("x", 60_000)})
		}
		p := open(t, v)
		after(tick)
		p.see()
		require.Len(t, p.records, 1000)
		require.Contains(t, p.records, "long at work")
		require.NotContains(t, p.records, "early 0")
		require.Contains(t, p.records, "early 1499")
		require.Less(t, len(p.records["early 1499"].Name), 300)
		require.EqualValues(t, 1501, number(p.status.Records))

		for i := range 1200 { // more in a second than one look reads
			s.put(records.Record{ID: fmt.Sprint("late ", i), Status: records.Done})
		}
		after(2 * time.Second)
		require.Contains(t, p.see().records, "late 7")
		require.NotContains(t, p.records, "early 1499")
		require.Contains(t, p.records, "long at work")

		after(5 * time.Second)
		wholes := p.see().wholes
		s.set(func() { s.read = 0 })
		after(30 * time.Second)
		s.set(func() { require.Zero(t, s.read, "nothing changes, nothing is read") })

		s.set(func() { s.stored = map[string]records.Record{} })
		after(20 * time.Second)
		require.Empty(t, p.see().records, "somebody has deleted them")
		require.Equal(t, wholes+1, p.wholes)
	})
}

// Records of an earlier version do not tell when they changed.
func TestRecordsWithoutATimeOfChange(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		s.stored["old"] = records.Record{ID: "old", Status: records.Done}
		p := open(t, v)
		after(time.Minute)
		require.Contains(t, p.see().records, "old")
		s.set(func() { require.Equal(t, 1, s.read) })
	})
}

func TestASlowPageIsDropped(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *servers, v *live.View) {
		slow, quick := open(t, v), open(t, v)
		for i := range 100 {
			v.Accepted(message(fmt.Sprint(i)))
			after(tick)
			quick.see()
		}
		n := 0
		for range slow.Updates { // which ends
			n++
		}
		require.Less(t, n, 50)
		require.Greater(t, quick.updates, 100)
		slow.Close()
		require.Contains(t, open(t, v).see().waiting, "99", "a new connection has all of it")
	})
}

func TestThePagesAreBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *servers, v *live.View) {
		var last *live.Watcher
		for range 200 {
			w, err := v.Watch()
			require.NoError(t, err)
			last = w
		}
		_, err := v.Watch()
		require.ErrorIs(t, err, live.ErrTooMany)
		require.Equal(t, live.Up, v.Status(t.Context()).MongoDB, "it is not a page")
		last.Close()
		last.Close()
		_, err = v.Watch()
		require.NoError(t, err)

		v.Close()
		_, err = v.Watch()
		require.ErrorIs(t, err, live.ErrClosed)
	})
}

func TestAPageThatIsLoadedAgainFindsTheCurve(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *servers, v *live.View) {
		s.set(func() { s.counts.Ready = 7 })
		p := open(t, v)
		after(tick)
		p.Close()
		after(2 * time.Second)
		p = open(t, v).see()
		require.Equal(t, []any{7}, p.depth)
		p.Close()
		after(time.Minute)
		p = open(t, v)
		after(tick)
		require.Equal(t, []any{7, nil, 7}, p.see().depth, "nobody has looked meanwhile")
	})
}
