package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"keda-p2/services/contract/records"
)

// result is what one load has shown.
type result struct {
	load     load
	variant  variant
	jobs     bool          // else a Deployment's pods
	max      int           // at a time
	interval time.Duration // between two of KEDA's looks
	start    time.Time
	records  []records.Record // those that are done
	pods     []pod
	trace    *trace // may be nil
}

const header = `| variant | load | messages | Jobs or pods | empty | not done | twice | interrupted | last stored, s | all done, s | of ideal | wait: median, s | 95 % | max | pod-seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |`

// row is a line of a table in Markdown.
func (r *result) row() string {
	s := r.summary()
	return fmt.Sprintf("| %s | %s | %d | %d | %d | %d | %d | %d | %.1f | %.1f | %.2f | %.1f | %.1f | %.1f | %.0f |",
		s.Variant, s.Load, s.Messages, s.Pods, s.Empty, s.Lost, s.Twice, s.Interrupted, s.Stored, s.Done, s.Done/s.Ideal, s.WaitMedian, s.Wait95, s.WaitMax, s.PodSeconds)
}

// summary is a result in figures. Times are in seconds; waits are from a message's
// acceptance to its record.
type summary struct {
	Variant     string  `json:"variant"` // of the ScaledJob, or Deployment/…
	Load        string  `json:"load"`
	Messages    int     `json:"messages"`
	Pods        int     `json:"pods"`
	Empty       int     `json:"empty"`       // Jobs that ended well without a message
	Lost        int     `json:"lost"`        // messages without a finished record: lost, or dead letters
	Twice       int     `json:"twice"`       // messages that were delivered more than once
	Interrupted int     `json:"interrupted"` // pods that were told to stop while they had a message
	Stored      float64 `json:"stored"`
	Done        float64 `json:"done"`
	Ideal       float64 `json:"ideal"`
	WaitMedian  float64 `json:"waitMedian"`
	Wait95      float64 `json:"wait95"`
	WaitMax     float64 `json:"waitMax"`
	PodSeconds  float64 `json:"podSeconds"` // from their creation to their end

	// What test/measure/plan needs to predict the same. Sent and FirstPod count from the
	// load's start, as Stored and Done do.
	Work     float64   `json:"work"`  // of a message
	Claim    float64   `json:"claim"` // how long a worker waits before it claims
	Poll     float64   `json:"poll"`  // pollingInterval
	Max      int       `json:"max"`   // maxReplicaCount
	Sent     []float64 `json:"sent"`
	FirstPod float64   `json:"firstPod"` // seen first, just after KEDA has looked

	// Lives are the pods' creations and ends, for the comparison's picture.
	Lives [][2]float64 `json:"lives"`
	// Ways are the messages', in the order of sending: sent, stored, finished, and the
	// number of its pod in Lives. For the animated picture.
	Ways [][4]float64 `json:"ways"`
}

func (r *result) summary() summary {
	waits := r.waits()
	s := summary{
		Variant: r.variant.name, Load: r.load.name, Messages: r.load.events(),
		Pods: len(r.pods), Lost: r.load.events() - len(r.records),
		Stored: r.last(stored).Seconds(), Done: r.last(finished).Seconds(), Ideal: r.load.ideal(r.max).Seconds(),
		WaitMedian: quantile(waits, 0.5).Seconds(), Wait95: quantile(waits, 0.95).Seconds(), WaitMax: quantile(waits, 1).Seconds(),
		Work: r.load.work.Seconds(), Claim: r.load.claimDelay.Seconds(), Poll: r.interval.Seconds(), Max: r.max,
	}
	since := func(t time.Time) float64 { return t.Sub(r.start).Seconds() }
	for _, record := range r.records {
		s.Sent = append(s.Sent, since(record.SentAt))
		pod := slices.IndexFunc(r.pods, func(p pod) bool { return p.name == record.Job })
		s.Ways = append(s.Ways, [4]float64{since(record.SentAt), since(record.StoredAt), since(record.FinishedAt), float64(pod)})
	}
	slices.Sort(s.Sent)
	slices.SortFunc(s.Ways, func(a, b [4]float64) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	for i, p := range r.pods {
		seen := since(p.seen)
		if i == 0 || seen < s.FirstPod {
			s.FirstPod = seen
		}
		s.Lives = append(s.Lives, [2]float64{seen, since(p.ended)})
	}
	if !r.jobs {
		s.Variant = "Deployment/" + s.Variant
	}
	worked := map[string]bool{}
	for _, record := range r.records {
		worked[record.Job] = true
		if record.Attempts > 1 {
			s.Twice++
		}
	}
	for _, p := range r.pods {
		if r.jobs && p.succeeded && !worked[p.name] {
			s.Empty++
		}
		if p.interrupted {
			s.Interrupted++
		}
		s.PodSeconds += p.ended.Sub(p.created).Seconds()
	}
	return s
}

// check says what must hold for every load.
func (r *result) check() error {
	s := r.summary()
	if s.Lost > 0 || s.Twice > 0 || s.Empty > 0 || r.jobs && s.Pods != s.Messages {
		return fmt.Errorf("%s: %d messages, of them %d lost and %d worked on twice; %d Jobs, of them %d empty", s.Load, s.Messages, s.Lost, s.Twice, s.Pods, s.Empty)
	}
	return nil
}

// save adds the result to a file, if it has a name.
func (r *result) save(file string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(f).Encode(r.summary()); err != nil {
		return err
	}
	return f.Close()
}

func stored(r records.Record) time.Time   { return r.StoredAt }
func finished(r records.Record) time.Time { return r.FinishedAt }

// last is when the last record got there, counted from the load's start.
func (r *result) last(what func(records.Record) time.Time) time.Duration {
	last := r.start
	for _, record := range r.records {
		if t := what(record); t.After(last) {
			last = t
		}
	}
	return last.Sub(r.start)
}

// waits are the times from sent to stored, sorted.
func (r *result) waits() []time.Duration {
	var all []time.Duration
	for _, record := range r.records {
		all = append(all, record.StoredAt.Sub(record.SentAt))
	}
	slices.Sort(all)
	return all
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}
