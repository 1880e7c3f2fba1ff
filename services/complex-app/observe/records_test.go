package observe_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/complex-app/observe"
	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/records"
)

func registered(s interface {
	Finished(context.Context, time.Time) iter.Seq2[records.Record, error]
	Newest(context.Context) (time.Time, error)
	Unfinished(context.Context) (int64, error)
}) *metrics.Registry {
	r := &metrics.Registry{}
	observe.AddRecords(r, s, slog.New(slog.DiscardHandler))
	return r
}

// Two replicas, one of which is restarted, show the same numbers.
func TestEachRecordCountsOnceInEveryReplica(t *testing.T) {
	t.Parallel()
	store := contracttest.Store(t)
	require.NoError(t, store.CreateIndexes(t.Context()))
	first := registered(store)
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
	second := registered(store) // reads all at once
	for _, r := range []*metrics.Registry{first, second, first} {
		got := shown(r)
		for _, line := range []string{
			"keda_p2_record_waiting_seconds_count 3", "keda_p2_record_waiting_seconds_sum 12",
			"keda_p2_job_claim_seconds_count 4", "keda_p2_job_claim_seconds_sum 8",
			"keda_p2_record_processing_seconds_count 3",
			"keda_p2_record_total_seconds_count 3",
			"keda_p2_record_redeliveries_total 1",
			`keda_p2_records{status="processing"} 1`,
			fmt.Sprintf("keda_p2_newest_claimed_sent_timestamp_seconds %v", float64(sent.UnixMilli())/1000),
		} {
			require.Contains(t, got, line+"\n")
		}
	}
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

func (s *fakeStore) Newest(context.Context) (time.Time, error) { return time.Time{}, s.err }
func (s *fakeStore) Unfinished(context.Context) (int64, error) { return 0, s.err }

func TestAReadingThatIsCutOffShowsNothingAndGoesOn(t *testing.T) {
	t.Parallel()
	at := time.Now()
	done := func(id string, changed time.Time) records.Record {
		return records.Record{ID: id, StoredAt: at, FinishedAt: at.Add(time.Second), ChangedAt: changed}
	}
	s := &fakeStore{finished: []records.Record{done("old", time.Time{}), done("a", at)}, err: errors.New("cut off")}
	r := registered(s)
	require.NotContains(t, shown(r), "keda_p2_record_processing", "half of the counts would look like a reset")

	s.err, s.finished = nil, append(s.finished, done("b", at.Add(time.Minute)), done("late", at.Add(51*time.Second)))
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 4\n")
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 4\n")
	require.Equal(t, at.Add(50*time.Second), s.since, "only what may be new is read")
	s.finished = append(s.finished, done("later", at.Add(52*time.Second)))
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 5\n", "one that became visible late")

	s.err = errors.New("MongoDB is away")
	require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 5\n", "the last numbers still hold")
	require.NotContains(t, shown(r), "keda_p2_records{")
}

func TestManyRecords(t *testing.T) {
	t.Parallel()
	at := time.Now()
	s := &fakeStore{}
	for i := range 30_000 {
		s.finished = append(s.finished, records.Record{ID: fmt.Sprint(i), StoredAt: at, FinishedAt: at, ChangedAt: at.Add(time.Duration(i) * time.Second)})
	}
	r := registered(s)
	for range 2 {
		require.Contains(t, shown(r), "keda_p2_record_processing_seconds_count 30000\n")
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	r := &metrics.Registry{}
	away := errors.New("away")
	observe.Ready(r, func() error { return nil }, func(context.Context) error { return away })
	require.Contains(t, shown(r), `keda_p2_dependency_ready{dependency="RabbitMQ"} 1`+"\n")
	require.Contains(t, shown(r), `keda_p2_dependency_ready{dependency="MongoDB"} 0`+"\n")
}
