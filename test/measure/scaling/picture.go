package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keda-p2/services/contract/records"
)

// The parts of a bar: colours that differ in lightness as well, for everybody.
const (
	waiting  = "#f0c05a"
	starting = "#c8553d"
	working  = "#2a6f97"
)

// draw writes an SVG, if there is a folder for it: a lane for each message, in the
// order of sending, with its waiting, its pod's start and the work.
func (r *result) draw(folder string) error {
	if folder == "" {
		return nil
	}
	const (
		left, top, right, bottom = 56, 44, 16, 34
		width, lane              = 720, 12
	)
	total := r.last(finished) + time.Second
	height := lane * len(r.records)
	x := func(t time.Time) float64 { return left + float64(t.Sub(r.start))/float64(total)*width }
	what := "pods"
	if r.jobs {
		what = "Jobs"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		left+width+right, top+height+bottom)
	// a background, so that the text can be read on a dark page too
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="18" font-size="14">%s: %d messages, %d %s, all done after %.1f s</text>`+"\n",
		left, r.load.name, r.load.events(), len(r.pods), what, r.last(finished).Seconds())
	for i, key := range []struct{ colour, text string }{{waiting, "waits in the queue"}, {starting, "its pod starts"}, {working, "its pod works"}} {
		fmt.Fprintf(&b, `<rect x="%d" y="26" width="10" height="10" fill="%s"/><text x="%d" y="35">%s</text>`, left+i*170, key.colour, left+14+i*170, key.text)
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
	created := map[string]time.Time{}
	for _, p := range r.pods {
		created[p.name] = p.seen
	}
	ordered := slices.SortedFunc(slices.Values(r.records), func(a, b records.Record) int {
		return cmp.Or(a.SentAt.Compare(b.SentAt), a.StoredAt.Compare(b.StoredAt))
	})
	for i, record := range ordered {
		y := top + i*lane
		// a pod that stays was there before the message
		begin := clamp(created[record.Job], record.SentAt, record.StoredAt)
		for _, part := range []struct {
			from, to time.Time
			colour   string
		}{{record.SentAt, begin, waiting}, {begin, record.StoredAt, starting}, {record.StoredAt, record.FinishedAt, working}} {
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, x(part.from), y+1, x(part.to)-x(part.from), lane-2, part.colour)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" font-size="10" fill="#444">%d</text>`+"\n", left-6, y+lane-2, i+1)
	}
	b.WriteString("</svg>\n")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	name := r.load.name
	if r.variant.name != asFound {
		name = strings.ReplaceAll(r.variant.name, "/", "-") + "-" + name
	}
	return os.WriteFile(filepath.Join(folder, name+".svg"), []byte(b.String()), 0o644)
}

func clamp(t, from, to time.Time) time.Time {
	switch {
	case t.Before(from):
		return from
	case t.After(to):
		return to
	}
	return t
}
