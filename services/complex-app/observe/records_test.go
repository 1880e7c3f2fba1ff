package observe_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/observe"
	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/records"
)

type store interface {
	Finished(context.Context, time.Time) iter.Seq2[records.Record, error]
	Newest(context.Context) (time.Time, error)
	CountByStatus(context.Context, ...records.Status) (map[records.Status]int64, error)
}

func registered(s store) *prometheus.Registry {
	r := prometheus.NewRegistry()
	observe.Records(r, s, slog.New(slog.DiscardHandler))
	return r
}

// Two replicas show the same numbers. One that is restarted begins at 0.
func TestEachRecordCountsOnceInEveryReplica(t *testing.T) {
	t.Parallel()
	store := contracttest.Store(t)
	require.NoError(t, store.CreateIndexes(t.Context()))
	first, second := registered(store), registered(store)
	require.Contains(t, shown(second), "keda_p2_record_redeliveries_total 0\n")
	require.Contains(t, shown(first), "keda_p2_record_redeliveries_total 0\n")
	require.NotContains(t, shown(first), "\nkeda_p2_newest", "no event was claimed")

	sent := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	begin := func(id string, attempt int) {
		require.NoError(t, store.Begin(t.Context(), contract.Message{ID: id, Event: contract.Event{Name: "a"}, SentAt: sent},
			records.Run{Job: "j", Attempt: attempt, StartedAt: sent.Add(3 * time.Second), ClaimedAt: sent.Add(time.Duration(attempt) * 4 * time.Second)}))
	}
	for i := range 4 {
		id := fmt.Sprint("id-", i)
		begin(id, 1)
		if i == 1 {
			begin(id, 2) // the first Job was killed
		}
		if i < 3 {
			require.NoError(t, store.Finish(t.Context(), id))
		}
		require.Contains(t, shown(first), fmt.Sprintf("keda_p2_record_total_seconds_count %d\n", min(i+1, 3)), "read one by one")
	}
	require.NoError(t, store.Begin(t.Context(), contract.Message{ID: "failed", Event: contract.Event{Name: "a"}, SentAt: sent}, records.Run{Job: "j", Attempt: 1}))
	require.NoError(t, store.Fail(t.Context(), "failed", "j", records.Failed, "boom"))
	for _, r := range []*prometheus.Registry{first, second, first} { // the second one reads all at once
		got := shown(r)
		for _, line := range []string{
			"keda_p2_record_waiting_seconds_count 3", "keda_p2_record_waiting_seconds_sum 12",
			"keda_p2_job_claim_seconds_count 4", "keda_p2_job_claim_seconds_sum 8",
			"keda_p2_record_processing_seconds_count 3",
			"keda_p2_record_total_seconds_count 3",
			"keda_p2_record_redeliveries_total 1",
			`keda_p2_records{status="processing"} 1`, `keda_p2_records{status="retrying"} 0`, `keda_p2_records{status="failed"} 1`,
			fmt.Sprintf("keda_p2_newest_claimed_sent_timestamp_seconds %v", float64(sent.UnixMilli())/1000),
		} {
			require.Contains(t, got, line+"\n")
		}
	}
	restarted := registered(store)
	for range 2 {
		require.Contains(t, shown(restarted), "keda_p2_record_total_seconds_count 0\n")
	}
	begin("after", 1)
	require.NoError(t, store.Finish(t.Context(), "after"))
	require.Contains(t, shown(restarted), "keda_p2_record_total_seconds_count 1\n")
}

// fakeStore yields its records, and then its error, if it does not hang.
type fakeStore struct {
	finished []records.Record
	err      error
	hangs    bool
	mu       sync.Mutex
	since    time.Time // asked for
}

func (s *fakeStore) Finished(ctx context.Context, since time.Time) iter.Seq2[records.Record, error] {
	s.mu.Lock()
	s.since = since
	s.mu.Unlock()
	return func(yield func(records.Record, error) bool) {
		for _, r := range s.finished {
			if !r.ChangedAt.Before(since) && !yield(r, nil) {
				return
			}
		}
		err := s.err
		if s.hangs {
			<-ctx.Done()
			err = ctx.Err()
		}
		if err != nil {
			yield(records.Record{}, err)
		}
	}
}

func (s *fakeStore) Newest(context.Context) (time.Time, error) { return time.Unix(1, 0), s.err }

func (s *fakeStore) CountByStatus(context.Context, ...records.Status) (map[records.Status]int64, error) {
	return map[records.Status]int64{records.Failed: 1}, s.err
}

func done(id string, changed time.Time) records.Record {
	return records.Record{ID: id, StoredAt: changed, FinishedAt: changed.Add(time.Second), ChangedAt: changed}
}

func requireCounted(t *testing.T, r *prometheus.Registry, n int, why string) {
	t.Helper()
	require.Contains(t, shown(r), fmt.Sprintf("keda_p2_record_processing_seconds_count %d\n", n), why)
}

func TestAScrapeReadsOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &fakeStore{finished: []records.Record{done("old", start.Add(-time.Second)), done("a", start)}}
		r := registered(s)
		requireCounted(t, r, 1, "the other one was done before the start")
		require.Equal(t, start, s.since, "and is not read")

		s.finished = append(s.finished, done("b", start.Add(time.Minute)))
		requireCounted(t, r, 2, "")
		requireCounted(t, r, 2, "none counts twice")
		require.Equal(t, start.Add(50*time.Second), s.since)
		s.finished = append(s.finished, done("late", start.Add(51*time.Second)))
		requireCounted(t, r, 3, "one that became visible late")
	})
}

// caught keeps the collector that is registered.
type caught struct {
	prometheus.Registerer
	collector prometheus.Collector
}

func (c *caught) MustRegister(all ...prometheus.Collector) { c.collector = all[0] }

// What was counted is remembered only as long as it may be read again.
func TestCountedRecordsAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, c, r, start := &fakeStore{}, &caught{}, prometheus.NewRegistry(), time.Now()
		observe.Records(c, s, slog.New(slog.DiscardHandler))
		r.MustRegister(c.collector)
		for i := range 1000 {
			s.finished = append(s.finished, done(fmt.Sprint(i), start.Add(time.Duration(i)*time.Second)))
		}
		requireCounted(t, r, 1000, "")
		require.Equal(t, 11, observe.Remembered(c.collector), "those of the last ten seconds")
	})
}

// Two Prometheus may scrape at once.
func TestScrapesAtOnce(t *testing.T) {
	t.Parallel()
	s := &fakeStore{}
	r := registered(s)
	for i := range 5000 {
		s.finished = append(s.finished, done(fmt.Sprint(i), time.Now().Add(time.Minute)))
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { shown(r) })
	}
	all.Wait()
	requireCounted(t, r, 5000, "each once")
}

func TestAReadingThatIsCutOffGoesOnAtTheNextScrape(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &fakeStore{finished: []records.Record{done("a", start.Add(time.Minute))}, hangs: true}
		r := registered(s)
		requireCounted(t, r, 1, "")
		require.Equal(t, 5*time.Second, time.Since(start), "Prometheus waits for ten seconds")
		for _, line := range []string{`keda_p2_records{status="failed"} 1`, "keda_p2_newest_claimed_sent_timestamp_seconds 1"} {
			require.Contains(t, shown(r), line+"\n", "without it, an alert would fire")
		}
		s.hangs, s.finished = false, append(s.finished, done("b", start.Add(2*time.Minute)))
		requireCounted(t, r, 2, "")
		require.Equal(t, start.Add(50*time.Second), s.since)

		s.err = errors.New("MongoDB is away")
		requireCounted(t, r, 2, "the last numbers still hold")
		require.NotContains(t, shown(r), "keda_p2_records{")
		require.NotContains(t, shown(r), "\nkeda_p2_newest")
	})
}

func TestAScrapeCountsABoundedNumberOfRecords(t *testing.T) {
	t.Parallel()
	for name, apart := range map[string]time.Duration{"over time": time.Second, "at once": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &fakeStore{}
			r := registered(s)
			for i := range 25_000 {
				s.finished = append(s.finished, done(fmt.Sprint(i), time.Now().Add(time.Duration(i)*apart)))
			}
			for _, n := range []int{10_000, 20_000, 25_000, 25_000} {
				requireCounted(t, r, n, "")
			}
		})
	}
}

// main registers the collector before MongoDB has to be there.
func TestRegisteringDoesNotAskMongoDB(t *testing.T) {
	t.Parallel()
	require.NotPanics(t, func() { registered(nil) })
}

func TestReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, start := prometheus.NewRegistry(), time.Now()
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		observe.Ready(r, func() error { return nil }, hangs)
		got := shown(r)
		require.Equal(t, time.Second, time.Since(start))
		require.Contains(t, got, `keda_p2_dependency_ready{dependency="RabbitMQ"} 1`+"\n")
		require.Contains(t, got, `keda_p2_dependency_ready{dependency="MongoDB"} 0`+"\n")
	})
}
