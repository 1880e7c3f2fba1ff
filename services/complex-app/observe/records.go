package observe

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"time"

	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/contract/records"
)

const (
	// collectTimeout bounds what a scrape waits for MongoDB: Prometheus itself waits
	// for ten seconds.
	collectTimeout = 5 * time.Second
	// overlap is how long a record may become visible after the time that the
	// server has noted in it.
	overlap = 10 * time.Second
)

type store interface {
	Finished(ctx context.Context, since time.Time) iter.Seq2[records.Record, error]
	Newest(ctx context.Context) (time.Time, error)
	Unfinished(ctx context.Context) (int64, error)
}

// Records measures the Jobs, which live too short a life to be scraped: what they
// did stands in their records, so it arrives even when complex-app is away, and
// counts a record once however often a Job was killed.
//
// At each scrape it reads the records that were finished since the last one, and at
// the first all of them. So all replicas show the same numbers, before and after a
// restart: queries take their maximum, not their sum.
type Records struct {
	store store
	log   *slog.Logger

	mu       sync.Mutex
	seen     map[string]time.Time // the records of the last overlap
	last     time.Time            // when the newest of them was finished
	complete bool                 // all older ones have been read

	waiting, starting, processing, total metrics.Histogram
	redeliveries                         metrics.Counter
}

// AddRecords adds the records' metrics. Nothing of them is shown before the first
// reading is complete: a part of the counts would look like a reset.
func AddRecords(r *metrics.Registry, s store, log *slog.Logger) {
	o := &Records{store: s, log: log, seen: map[string]time.Time{}}
	const same = " The same in every replica: take the maximum."
	buckets := []float64{.1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600}
	var hidden metrics.Registry
	o.waiting = hidden.Histogram("keda_p2_record_waiting_seconds", "From POST /send until a Job first claimed the message, of finished records."+same, buckets)
	o.starting = hidden.Histogram("keda_p2_job_claim_seconds", "From the start of a Job's process until it had claimed its message, of finished records."+same, buckets)
	o.processing = hidden.Histogram("keda_p2_record_processing_seconds", "From the last claim until the record was finished."+same, buckets)
	o.total = hidden.Histogram("keda_p2_record_total_seconds", "From POST /send until the record was finished."+same, buckets)
	o.redeliveries = hidden.Counter("keda_p2_record_redeliveries_total", "Deliveries of finished records' messages after the first: Jobs that did not end their work."+same)
	r.Group(func(show func(*metrics.Registry)) {
		ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
		defer cancel()
		if o.update(ctx) {
			show(&hidden)
		}
		var now metrics.Registry
		if n, err := s.Unfinished(ctx); err == nil {
			now.Gauge("keda_p2_records", "Records that are not done: in work, to be tried again, or dead."+same, "status").Add(float64(n), string(records.Processing))
		}
		if sent, err := s.Newest(ctx); err == nil && !sent.IsZero() {
			now.Gauge("keda_p2_newest_claimed_sent_timestamp_seconds", "When the newest event was sent that a Job has claimed: those that wait were sent later."+same).Add(float64(sent.UnixMilli()) / 1000)
		}
		show(&now)
	})
}

// update reads what is new, and says whether the counts are those of all records.
// Cut off, it goes on at the next scrape where it was.
func (o *Records) update(ctx context.Context) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	since := o.last
	if !since.IsZero() {
		since = since.Add(-overlap)
	}
	for r, err := range o.store.Finished(ctx, since) {
		if err != nil {
			o.log.Debug("no new numbers of records", "reason", err.Error())
			return o.complete // the last ones still hold
		}
		if _, counted := o.seen[r.ID]; counted {
			continue
		}
		o.seen[r.ID] = r.ChangedAt
		if r.ChangedAt.After(o.last) {
			o.last = r.ChangedAt
		}
		o.count(r)
		if len(o.seen) > maxSeen {
			o.forget()
		}
	}
	o.forget()
	o.complete = true
	return true
}

// maxSeen is when it pays to forget during the first reading.
const maxSeen = 10_000

func (o *Records) forget() {
	maps.DeleteFunc(o.seen, func(_ string, changed time.Time) bool { return changed.Before(o.last.Add(-overlap)) })
}

func (o *Records) count(r records.Record) {
	claimed, again := r.StoredAt, r.StoredAt // of a record of an earlier version
	for i, run := range r.Runs {
		if i == 0 || run.ClaimedAt.Before(claimed) {
			claimed = run.ClaimedAt
		}
		if i == 0 || run.ClaimedAt.After(again) {
			again = run.ClaimedAt
		}
		observe(o.starting, run.StartedAt, run.ClaimedAt)
	}
	observe(o.processing, again, r.FinishedAt)
	if !r.SentAt.IsZero() { // a message of another program may not say
		observe(o.waiting, r.SentAt, claimed)
		observe(o.total, r.SentAt, r.FinishedAt)
	}
	o.redeliveries.Add(float64(max(0, r.Attempts-1)))
}

// observe never counts backwards: the clocks of two machines differ.
func observe(h metrics.Histogram, from, to time.Time) { h.Observe(max(0, to.Sub(from).Seconds())) }
