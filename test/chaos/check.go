package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// verdict compares what complex-app promised with what is there. The last four
// hold ids.
type verdict struct {
	done, dead int // accepted events that are a done record, or else a dead letter
	both       int // a done record whose message is a dead letter too

	lost    []string // accepted, and neither
	doubled []string // more than one record
	wrong   []string // a record with another name or content, or in another state than its message
	foreign []string // a record, or a dead letter, of an event that was never sent
}

func judge(all []sent, stored []records.Record, dead []queue.DeadLetter) verdict {
	var v verdict
	byID, ids := map[string][]records.Record{}, map[string]string{}
	for _, e := range all {
		ids[e.Name] = e.ID // names are unique
		byID[e.ID] = nil
	}
	for _, r := range stored {
		id := r.ID
		if _, known := byID[id]; !known {
			v.foreign = append(v.foreign, id)
			id = ids[r.Name] // the event that it was made of
		}
		byID[id] = append(byID[id], r)
	}
	letters, byRabbitMQ := map[string]bool{}, map[string]bool{}
	for _, d := range dead {
		if _, known := byID[d.ID]; !known {
			v.foreign = append(v.foreign, d.ID)
		}
		letters[d.ID] = true
		if strings.HasPrefix(d.Reason, "delivered ") {
			byRabbitMQ[d.ID] = true // its worker died, and could not say so in the record
		}
	}
	for _, e := range all {
		mine := byID[e.ID]
		done := slices.ContainsFunc(mine, func(r records.Record) bool { return r.Status == records.Done })
		if len(mine) > 1 {
			v.doubled = append(v.doubled, e.ID)
		}
		if slices.ContainsFunc(mine, func(r records.Record) bool {
			givenUp := letters[e.ID] && !byRabbitMQ[e.ID] && r.Status != records.Failed && r.Status != records.Done
			return r.Name != e.Name || r.Content != e.Content || givenUp || r.Status == records.Failed && !letters[e.ID]
		}) {
			v.wrong = append(v.wrong, e.ID)
		}
		switch {
		case e.accepted.IsZero():
		case done && letters[e.ID]:
			v.done++
			v.both++
		case done:
			v.done++
		case letters[e.ID]:
			v.dead++
		default:
			v.lost = append(v.lost, e.ID)
		}
	}
	return v
}

func (v verdict) err() error {
	if len(v.offenders()) == 0 {
		return nil
	}
	return fmt.Errorf("%d events lost, %d doubled, %d with another content or state, %d never sent", len(v.lost), len(v.doubled), len(v.wrong), len(v.foreign))
}

// offenders are the ids that err is about.
func (v verdict) offenders() []string { return slices.Concat(v.lost, v.doubled, v.wrong, v.foreign) }

// trail tells all that is known of an event, from its client to the last Job.
func (s *system) trail(id string, all []sent, stored []records.Record) string {
	var b strings.Builder
	fmt.Fprintln(&b, id)
	var name string
	for _, e := range all {
		if e.ID == id {
			name = e.Name
			fmt.Fprintf(&b, "  accepted %s at try %d\n", e.accepted.Format(time.StampMilli), e.tries)
		}
	}
	for _, r := range stored {
		if r.ID == id || r.Name == name {
			fmt.Fprintf(&b, "  record %s %s of %s, attempt %d\n", r.ID, r.Status, r.Job, r.Attempts)
		}
	}
	s.eachLog(func(file, text string) {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, fmt.Sprintf("%q", id)) }) {
			fmt.Fprintf(&b, "  %s ends with %s\n", filepath.Base(file), lines[len(lines)-1])
		}
	})
	return b.String()
}

// empty counts the Jobs that found nothing to do.
func (s *system) empty() (n int) {
	s.eachLog(func(_, text string) {
		if strings.Contains(text, queue.ErrEmpty.Error()) {
			n++
		}
	})
	return n
}

func (s *system) eachLog(f func(file, text string)) {
	_ = filepath.WalkDir(filepath.Join(s.dir, "jobs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			text, _ := os.ReadFile(path) // a log that is gone tells nothing
			f(path, string(text))
		}
		return nil
	})
}
