package observe_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"testing"
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
	LastFinished(context.Context) (time.Time, error)
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
	require.NoError(t, store.Fail(t.Context(), "failed", records.Failed, "boom"))
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

// fakeStore yields its records, and then its error.
type fakeStore struct {
	finished []records.Record
	err      error
	since    time.Time // asked for
}

func (s *fakeStore) Finished(_ context.Context, since time.Time) iter.Seq2[records.Record, error] {
	s.since = since
	return func(yield func(records.Record, error) bool) {
		for _, r := range s.finished {
			if !r.ChangedAt.Before(since) && !yield(r, nil) {
				return
			}
		}
		if s.err != nil {
			yield(records.Record{}, s.err)
		}
	}
}

func (s *fakeStore) LastFinished(context.Context) (last time.Time, err error) {
	for _, r := range s.finished {
		if r.ChangedAt.After(last) {
			last = r.ChangedAt
		}
	}
	return last, s.err
}

func (s *fakeStore) Newest(context.Context) (time.Time, error) { return time.Time{}, s.err }

func (s *fakeStore) CountByStatus(context.Context, ...records.Status) (map[records.Status]int64, error) {
	return nil, s.err
}

func TestAScrapeReadsOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	at := time.Now()
	done := func(id string, changed time.Time) records.Record {
		return records.Record{ID: id, StoredAt: at, FinishedAt: at.Add(time.Second), ChangedAt: changed}
	}
	s := &fakeStore{finished: []records.Record{done("old", at.Add(-time.Hour)), done("a", at)}, err: errors.New("away")}
	r := registered(s)
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 0\n", "MongoDB is away")
	s.err = nil
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 0\n", "they were finished before the start")
	require.Equal(t, at.Add(-10*time.Second), s.since, "and are not read, however many there are")

	s.finished = append(s.finished, done("b", at.Add(time.Minute)), done("late", at.Add(51*time.Second)))
	s.err = errors.New("cut off")
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 2\n")
	s.err = nil
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 2\n")
	require.Equal(t, at.Add(50*time.Second), s.since)
	s.finished = append(s.finished, done("later", at.Add(52*time.Second)))
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 3\n", "one that became visible late")

	s.err = errors.New("MongoDB is away")
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 3\n", "the last numbers still hold")
	require.NotContains(t, shown(r), "keda_p2_records{")
}

// Whoever registers the collector asks MongoDB nothing.
func TestRegisteringAsksNobody(t *testing.T) {
	t.Parallel()
	require.NotPanics(t, func() { registered(nil) })
}

func TestReady(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	away := errors.New("away")
	observe.Ready(r, func() error { return nil }, func(context.Context) error { return away })
	require.Contains(t, shown(r), `keda_p2_dependency_ready{dependency="RabbitMQ"} 1`+"\n")
	require.Contains(t, shown(r), `keda_p2_dependency_ready{dependency="MongoDB"} 0`+"\n")
}
