package observe

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keda-p2/services/contract/records"
)

const (
	// collectTimeout bounds what a scrape waits for MongoDB: Prometheus itself waits
	// for ten seconds.
	collectTimeout = 5 * time.Second
	// settleTime is how long a record may become visible after the time that the
	// server has noted in it.
	settleTime = 10 * time.Second
)

type store interface {
	Finished(ctx context.Context, since time.Time) iter.Seq2[records.Record, error]
	LastFinished(context.Context) (time.Time, error)
	Newest(context.Context) (time.Time, error)
	CountByStatus(context.Context, ...records.Status) (map[records.Status]int64, error)
}

// recordCollector measures the Jobs, which live too briefly to be scraped: their
// timings are stored in the records. It counts a record once, however many times its
// Job was killed.
//
// It counts the records that are finished after its process has started, and each
// scrape reads only those since the last one. Every replica sees all records: queries
// take the maximum of the replicas' rates, not the sum.
type recordCollector struct {
	store store
	log   *slog.Logger

	mu      sync.Mutex // for what follows
	started bool
	last    time.Time            // when the newest counted record was finished
	seen    map[string]time.Time // the records that were finished at most settleTime before

	waiting, starting, processing, total prometheus.Histogram
	redeliveries                         prometheus.Counter
	status, newest                       *prometheus.Desc
}

const same = " Every replica counts all records since its own start: take the maximum of the rates."

// Records registers the metrics of the records.
func Records(r prometheus.Registerer, s store, log *slog.Logger) {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help + same,
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600}})
	}
	r.MustRegister(&recordCollector{store: s, log: log, seen: map[string]time.Time{},
		waiting:    histogram("keda_p2_record_waiting_seconds", "From POST /send until a Job first claimed the message, of records that are done."),
		starting:   histogram("keda_p2_job_claim_seconds", "From the start of a Job's process until it had claimed its message, of records that are done."),
		processing: histogram("keda_p2_record_processing_seconds", "From the last claim until the record was done."),
		total:      histogram("keda_p2_record_total_seconds", "From POST /send until the record was done."),
		redeliveries: prometheus.NewCounter(prometheus.CounterOpts{Name: "keda_p2_record_redeliveries_total",
			Help: "Attempts after the first of records that are done: Jobs that failed or were killed." + same}),
		status: prometheus.NewDesc("keda_p2_records", "Records that are not done. The same in every replica: take the maximum.", []string{"status"}, nil),
		newest: prometheus.NewDesc("keda_p2_newest_claimed_sent_timestamp_seconds", "When the newest event was sent that a Job has claimed: those that wait were sent later. The same in every replica: take the maximum.", nil, nil),
	})
}

func (c *recordCollector) counted() []prometheus.Collector {
	return []prometheus.Collector{c.waiting, c.starting, c.processing, c.total, c.redeliveries}
}

// Describe asks nobody: main registers the collector before MongoDB has to be there.
func (c *recordCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.counted() {
		m.Describe(ch)
	}
	ch <- c.status
	ch <- c.newest
}

// Collect reads what is new. What MongoDB does not tell now is left out.
func (c *recordCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	c.update(ctx)
	for _, m := range c.counted() {
		m.Collect(ch)
	}
	if n, err := c.store.CountByStatus(ctx, records.Processing, records.Retrying, records.Failed); err == nil {
		for status, count := range n {
			ch <- prometheus.MustNewConstMetric(c.status, prometheus.GaugeValue, float64(count), string(status))
		}
	}
	if sent, err := c.store.Newest(ctx); err == nil && !sent.IsZero() {
		ch <- prometheus.MustNewConstMetric(c.newest, prometheus.GaugeValue, float64(sent.UnixMilli())/1000)
	}
}

// update counts the records that were finished since the last one. Cut off, it goes on
// at the next scrape where it was.
func (c *recordCollector) update(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := !c.started
	if start {
		last, err := c.store.LastFinished(ctx)
		if err != nil {
			return
		}
		c.last = last
	}
	since := c.last
	if !since.IsZero() {
		since = since.Add(-settleTime)
	}
	for r, err := range c.store.Finished(ctx, since) {
		if err != nil {
			c.log.Debug("no new numbers of records", "reason", err.Error())
			return
		}
		if _, counted := c.seen[r.ID]; counted {
			continue
		}
		c.seen[r.ID] = r.ChangedAt
		if r.ChangedAt.After(c.last) {
			c.last = r.ChangedAt
		}
		if !start {
			c.count(r)
		}
	}
	c.started = true
	maps.DeleteFunc(c.seen, func(_ string, changed time.Time) bool { return changed.Before(c.last.Add(-settleTime)) })
}

func (c *recordCollector) count(r records.Record) {
	first, last := r.StoredAt, r.StoredAt // of a record of an earlier version
	for i, run := range r.Runs {
		if i == 0 || run.ClaimedAt.Before(first) {
			first = run.ClaimedAt
		}
		if i == 0 || run.ClaimedAt.After(last) {
			last = run.ClaimedAt
		}
		observe(c.starting, run.StartedAt, run.ClaimedAt)
	}
	observe(c.processing, last, r.FinishedAt)
	if !r.SentAt.IsZero() { // a message of another program may not say
		observe(c.waiting, r.SentAt, first)
		observe(c.total, r.SentAt, r.FinishedAt)
	}
	c.redeliveries.Add(float64(max(0, r.Attempts-1)))
}

// observe never counts backwards: the clocks of two machines differ.
func observe(h prometheus.Histogram, from, to time.Time) { h.Observe(max(0, to.Sub(from).Seconds())) }
