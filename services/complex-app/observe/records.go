package observe

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keda-p2/services/contract/records"
)

const (
	// collectTimeout bounds what a scrape waits for MongoDB: Prometheus itself waits
	// for ten seconds.
	collectTimeout = 5 * time.Second
	// maxPerScrape bounds the records that a scrape counts, and with them the memory.
	// With a scrape every 15 s, these are 40,000 Jobs a minute.
	maxPerScrape = 10_000
	// settleTime is how long a record may become visible after the time that the
	// server has noted in it.
	settleTime = 10 * time.Second
)

type store interface {
	Finished(ctx context.Context, since time.Time) iter.Seq2[records.Record, error]
	Newest(context.Context) (time.Time, error)
	CountByStatus(context.Context, ...records.Status) (map[records.Status]int64, error)
}

// recordCollector measures the Jobs, which live too briefly to be scraped: their
// timings are stored in the records. It counts a record once, however many times its
// Job was killed.
//
// It counts the records that are done after its process has started, and each scrape
// reads only those since the last one. Every replica sees all records: queries take the
// maximum of the replicas' rates, not the sum.
type recordCollector struct {
	store store
	log   *slog.Logger

	waiting, starting, processing, total prometheus.Histogram
	redeliveries                         prometheus.Counter
	status, newest                       *prometheus.Desc

	mu    sync.Mutex           // for what follows
	since time.Time            // from when on the next scrape reads
	seen  map[string]time.Time // the records since then that are counted, and when they were done
}

// Records registers the metrics of the records.
func Records(registry prometheus.Registerer, s store, log *slog.Logger) {
	const (
		counted = " Each replica counts all records that are done after its start: take the maximum of the rates."
		same    = " The same in every replica: take the maximum."
	)
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help + counted,
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800}})
	}
	registry.MustRegister(&recordCollector{store: s, log: log,
		waiting:    histogram("keda_p2_record_waiting_seconds", "From POST /send until a Job first claimed the message."),
		starting:   histogram("keda_p2_job_claim_seconds", "From the start of a Job's process until it had claimed its message."),
		processing: histogram("keda_p2_record_processing_seconds", "From the last claim until the record was done."),
		total:      histogram("keda_p2_record_total_seconds", "From POST /send until the record was done."),
		redeliveries: prometheus.NewCounter(prometheus.CounterOpts{Name: "keda_p2_record_redeliveries_total",
			Help: "Attempts after the first: Jobs that failed or were killed." + counted}),
		status: prometheus.NewDesc("keda_p2_records", "Records that are not done."+same, []string{"status"}, nil),
		newest: prometheus.NewDesc("keda_p2_newest_claimed_sent_timestamp_seconds",
			"When the newest event was sent that a Job has claimed: those that wait were sent later."+same, nil, nil),
		// The times in the records are by MongoDB's clock. If this one differs by a second,
		// the records of one second more or fewer are counted.
		since: time.Now(),
		seen:  map[string]time.Time{},
	})
}

// Describe names no metrics. Prometheus' library then checks them when they are collected,
// and not when main calls Records: MongoDB need not be there yet.
func (c *recordCollector) Describe(chan<- *prometheus.Desc) {}

// Collect is called at each scrape. What MongoDB does not answer is left out. What an
// alert needs comes first: catching up with many records may take all the time.
func (c *recordCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	if sent, err := c.store.Newest(ctx); err == nil && !sent.IsZero() {
		ch <- prometheus.MustNewConstMetric(c.newest, prometheus.GaugeValue, float64(sent.UnixMilli())/1000)
	}
	if n, err := c.store.CountByStatus(ctx, records.Processing, records.Retrying, records.Failed); err == nil {
		for status, count := range n {
			ch <- prometheus.MustNewConstMetric(c.status, prometheus.GaugeValue, float64(count), string(status))
		}
	}
	c.countFinished(ctx)
	for _, count := range []prometheus.Collector{c.waiting, c.starting, c.processing, c.total, c.redeliveries} {
		count.Collect(ch)
	}
}

// countFinished counts the records that were done since the last scrape. When it is cut
// off, the next scrape goes on from there.
func (c *recordCollector) countFinished(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	counted := 0
	for r, err := range c.store.Finished(ctx, c.since) {
		if err != nil {
			c.log.Debug("the metrics of the records are not up to date", "reason", err.Error())
			break
		}
		if _, again := c.seen[r.ID]; again {
			continue
		}
		c.count(r)
		c.seen[r.ID] = r.ChangedAt
		if settled := r.ChangedAt.Add(-settleTime); settled.After(c.since) {
			c.since = settled
		}
		if counted++; counted == maxPerScrape {
			break
		}
	}
	maps.DeleteFunc(c.seen, func(_ string, done time.Time) bool { return done.Before(c.since) })
}

func (c *recordCollector) count(r records.Record) {
	first, last := r.StoredAt, r.StoredAt // of a record of an earlier version
	if len(r.Runs) > 0 {
		slices.SortFunc(r.Runs, func(a, b records.Run) int { return a.ClaimedAt.Compare(b.ClaimedAt) })
		first, last = r.Runs[0].ClaimedAt, r.Runs[len(r.Runs)-1].ClaimedAt
	}
	for _, run := range r.Runs {
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
