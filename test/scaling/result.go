package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keda-p2/services/contract/records"
)

// result is what one load has shown.
type result struct {
	name    string
	load    load
	start   time.Time
	records []records.Record
	pods    []pod
}

const header = "load      events  Jobs  empty  stored   done   wait: median    p95     max  twice  pod-seconds"

func (r *result) row() string {
	waits := r.waits()
	return fmt.Sprintf("%-9s %6d  %4d  %5d  %5.1fs  %5.1fs  %12.1fs  %4.1fs  %5.1fs  %5d  %11.0f",
		r.name, len(r.records), len(r.pods), r.empty(), r.last(stored).Seconds(), r.last(finished).Seconds(),
		quantile(waits, 0.5).Seconds(), quantile(waits, 0.95).Seconds(), quantile(waits, 1).Seconds(),
		r.twice(), r.podSeconds())
}

// check says what must hold for every load: as many Jobs as messages.
func (r *result) check() error {
	if len(r.pods) != len(r.records) || r.empty() > 0 {
		return fmt.Errorf("%s: %d Jobs for %d messages, %d of them empty", r.name, len(r.pods), len(r.records), r.empty())
	}
	return nil
}

func stored(r records.Record) time.Time   { return r.StoredAt }
func finished(r records.Record) time.Time { return r.FinishedAt }

// last is when the last record got there, counted from the load's start.
func (r *result) last(what func(records.Record) time.Time) time.Duration {
	var last time.Time
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

// empty counts the pods that ended with success and no message.
func (r *result) empty() int {
	worked := map[string]bool{}
	for _, record := range r.records {
		worked[record.Job] = true
	}
	n := 0
	for _, p := range r.pods {
		if p.succeeded && !worked[p.name] {
			n++
		}
	}
	return n
}

// twice counts the messages that were delivered more than once.
func (r *result) twice() int {
	n := 0
	for _, record := range r.records {
		if record.Attempts > 1 {
			n++
		}
	}
	return n
}

// podSeconds is what the pods cost, from their start to their end.
func (r *result) podSeconds() float64 {
	var sum time.Duration
	for _, p := range r.pods {
		sum += p.ended.Sub(p.created)
	}
	return sum.Seconds()
}

// draw writes an SVG: a lane for each message, in the order of sending, with its
// waiting and its working.
func (r *result) draw(folder string) error {
	const (
		left, top, right, bottom = 56, 44, 16, 34
		width, lane              = 720, 12
	)
	total := r.last(finished) + time.Second
	height := lane * len(r.records)
	x := func(t time.Time) float64 { return left + float64(t.Sub(r.start))/float64(total)*width }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		left+width+right, top+height+bottom)
	// a background, so that the text can be read on a dark page too
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="18" font-size="14">%s: %d events, %d Jobs, all done after %.1f s</text>`+"\n",
		left, r.name, len(r.records), len(r.pods), r.last(finished).Seconds())
	for i, key := range []struct{ colour, text string }{{waiting, "waits in the queue, its pod starts"}, {working, "its pod works"}} {
		fmt.Fprintf(&b, `<rect x="%d" y="26" width="10" height="10" fill="%s"/><text x="%d" y="35">%s</text>`, left+i*230, key.colour, left+14+i*230, key.text)
	}
	step := 5 * time.Second
	if total > time.Minute {
		step = 20 * time.Second
	}
	for t := time.Duration(0); t <= total; t += step {
		at := x(r.start.Add(t))
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ccc"/><text x="%.1f" y="%d" text-anchor="middle" fill="#444">%.0f s</text>`+"\n",
			at, top, top+height, at, top+height+18, t.Seconds())
	}
	ordered := slices.Clone(r.records)
	slices.SortFunc(ordered, func(a, b records.Record) int { return a.SentAt.Compare(b.SentAt) })
	for i, record := range ordered {
		y := top + i*lane
		for _, part := range []struct {
			from, to time.Time
			colour   string
		}{{record.SentAt, record.StoredAt, waiting}, {record.StoredAt, record.FinishedAt, working}} {
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, x(part.from), y+1, x(part.to)-x(part.from), lane-2, part.colour)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" font-size="10" fill="#444">%d</text>`+"\n", left-6, y+lane-2, i+1)
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(filepath.Join(folder, r.name+".svg"), []byte(b.String()), 0o644)
}

// Two colours that differ in lightness as well: for everybody.
const (
	waiting = "#f0c05a"
	working = "#2a6f97"
)
