package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"

	"keda-p2/services/sandbox/scaler"
)

const (
	events      = 5 // as in the tutorial: record1 with content1 and so on
	demoTimeout = 5 * time.Minute
)

// event is one that was sent, and record what was stored of it.
type (
	event struct{ ID, Name, Content string }

	record struct {
		event
		Status, Job                  string
		Attempts                     int
		SentAt, StoredAt, FinishedAt time.Time
	}
)

// demo sends the tutorial's events. It fails unless each has become one record
// that is done, by one Job.
func demo(ctx context.Context, b *sandbox) error {
	began := time.Now()
	if err := b.startAll(ctx, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	ctx = b.untilFailure(ctx)
	// a MongoDB of the user's own may hold records of earlier demos
	earlier, err := b.records(ctx, "")
	if err != nil {
		return cause(ctx, err)
	}
	last := ""
	if n := len(earlier); n > 0 {
		last = earlier[n-1].ID
	}
	b.say("")
	var sent []event
	for i := range events {
		e := event{Name: fmt.Sprintf("record%d", i+1), Content: fmt.Sprintf("content%d", i+1)}
		path := "/send?name=" + e.Name + "&content=" + e.Content
		var accepted struct{ ID string }
		if err := b.call(ctx, http.MethodPost, path, http.StatusAccepted, &accepted); err != nil {
			return cause(ctx, err)
		}
		b.say("POST %s  ->  202, id %s", path, accepted.ID)
		e.ID = accepted.ID
		sent = append(sent, e)
	}
	b.say("")
	records, err := b.follow(ctx, last)
	if err != nil {
		return cause(ctx, err)
	}
	b.say("")
	jobs := b.scaler.Jobs()
	printTables(b.out, records, jobs)
	if err := verify(sent, records, b.scaler.Totals()); err != nil {
		for _, j := range jobs {
			if j.Status == scaler.Failed {
				err = fmt.Errorf("%w\n%s failed: %s", err, j.Name, j.Reason)
			}
		}
		return err
	}
	b.say("\n%[1]d events, %[1]d records, %[1]d Jobs: all done, in %[2]s with the start of everything.", events, since(began))
	return nil
}

// follow shows the Jobs' progress until there is nothing to wait for, and
// returns the records after the one with the id last.
func (b *sandbox) follow(ctx context.Context, last string) ([]record, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, fmt.Errorf("not finished after %s", demoTimeout))
	defer cancel()
	show, end := b.progress()
	defer end()
	for {
		records, err := b.records(ctx, last)
		if err != nil {
			return nil, cause(ctx, err)
		}
		done := 0
		for _, r := range records {
			if r.Status == "done" {
				done++
			}
		}
		t := b.scaler.Totals()
		show(fmt.Sprintf("Jobs: %d started, %d succeeded, %d failed   records: %d, %d done", t.Started, t.Succeeded, t.Failed, len(records), done))
		if t.Started == t.Succeeded+t.Failed && (done >= events || t.Failed > 0) {
			return records, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// progress returns a function that shows one line which changes: in place on a
// terminal, otherwise as a new line for each change.
func (b *sandbox) progress() (show func(string), end func()) {
	began, shown := time.Now(), ""
	f, ok := b.out.(*os.File)
	if ok && isatty.IsTerminal(f.Fd()) {
		show = func(line string) { fmt.Fprintf(b.out, "\r\x1b[K%4.0fs  %s", time.Since(began).Seconds(), line) }
		return show, func() { b.say("") }
	}
	show = func(line string) {
		if line != shown {
			shown = line
			b.say("%4.0fs  %s", time.Since(began).Seconds(), line)
		}
	}
	return show, func() {}
}

// verify tells what is wrong with the outcome.
func verify(sent []event, records []record, jobs scaler.Totals) error {
	var problems []error
	stored := map[string]record{}
	for _, r := range records {
		stored[r.ID] = r
	}
	for _, e := range sent {
		switch r, ok := stored[e.ID]; {
		case !ok:
			problems = append(problems, fmt.Errorf("%s has no record", e.Name))
		case r.event != e:
			problems = append(problems, fmt.Errorf("the record of %s has the name %q and the content %q", e.Name, r.Name, r.Content))
		case r.Status != "done":
			problems = append(problems, fmt.Errorf("%s is %s, not done", e.Name, r.Status))
		}
	}
	if len(records) > len(sent) {
		problems = append(problems, fmt.Errorf("there are %d records for %d events", len(records), len(sent)))
	}
	if want := (scaler.Totals{Started: len(sent), Succeeded: len(sent)}); jobs != want {
		problems = append(problems, fmt.Errorf("%d Jobs were started, %d succeeded and %d failed, instead of one for each event",
			jobs.Started, jobs.Succeeded, jobs.Failed))
	}
	return errors.Join(problems...)
}

// records returns those after the one with the given id, if any.
func (b *sandbox) records(ctx context.Context, id string) ([]record, error) {
	path := "/data"
	if id != "" {
		path += "?after=" + url.QueryEscape(id)
	}
	var records []record
	err := b.call(ctx, http.MethodGet, path, http.StatusOK, &records)
	return records, err
}

// call makes a request of complex-app and decodes the answer, unless it is nil.
func (b *sandbox) call(ctx context.Context, method, path string, want int, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(body, answer)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func printTables(out io.Writer, records []record, jobs []scaler.Job) {
	took := func(from, to time.Time) string {
		if to.IsZero() {
			return "-"
		}
		return fmt.Sprintf("%.1fs", to.Sub(from).Seconds())
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RECORD\tCONTENT\tSTATUS\tATTEMPTS\tSTORED AFTER\tDONE AFTER\tJOB (ITS POD)")
	for _, r := range records {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.Name, r.Content, r.Status, r.Attempts,
			took(r.SentAt, r.StoredAt), took(r.SentAt, r.FinishedAt), r.Job)
	}
	_ = w.Flush()
	fmt.Fprintln(w, "\nJOB\tSTATUS\tSTARTED\tTOOK")
	for _, j := range jobs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", j.Name, j.Status, j.Started.Format(time.TimeOnly), took(j.Started, j.Finished))
	}
	_ = w.Flush()
}
