package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// trace follows what the pods' watch does not show: the Jobs, the cluster's
// events, and what the processes log. All times but the log's are those at which
// we were told.
type trace struct {
	stop context.CancelFunc
	wait sync.WaitGroup

	mu   sync.Mutex
	jobs map[string]moments // by the Job's name
	pods map[string]moments // by the pod's
}

// moments are named after what was reached.
type moments map[string]time.Time

func (m moments) set(name string, t time.Time) {
	if _, known := m[name]; !known {
		m[name] = t
	}
}

func (c *cluster) startTrace(ctx context.Context) (*trace, error) {
	ctx, stop := context.WithCancel(ctx)
	t := &trace{stop: stop, jobs: map[string]moments{}, pods: map[string]moments{}}
	for kind, note := range map[string]func(watched, time.Time){"jobs": t.noteJob, "events": t.noteEvent} {
		cmd := exec.CommandContext(ctx, "kubectl", "get", kind, "--watch-only", "--output", "json")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			stop()
			return nil, err
		}
		t.wait.Go(func() {
			for objects := json.NewDecoder(out); ; {
				var o watched
				if objects.Decode(&o) != nil {
					break
				}
				note(o, time.Now())
			}
			_ = cmd.Wait()
		})
	}
	return t, nil
}

// watched is a Job or an Event.
type watched struct {
	Metadata struct{ Name string }
	Status   struct {
		Conditions []struct{ Type, Status string }
	}
	Reason         string
	InvolvedObject struct{ Kind, Name string }
}

func of(all map[string]moments, name string) moments {
	if all[name] == nil {
		all[name] = moments{}
	}
	return all[name]
}

func (t *trace) noteJob(o watched, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := of(t.jobs, o.Metadata.Name)
	m.set("created", now)
	for _, c := range o.Status.Conditions {
		if c.Type == "Complete" && c.Status == "True" {
			m.set("complete", now)
		}
	}
}

func (t *trace) noteEvent(o watched, now time.Time) {
	name := o.InvolvedObject.Name
	if o.InvolvedObject.Kind != "Pod" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	of(t.pods, name).set(o.Reason, now)
}

// readLogs reads when each pod's processor-job says what it has done. It does so
// afterwards, not to disturb what is measured.
func (t *trace) readLogs(ctx context.Context, pods []pod) error {
	t.stop()
	t.wait.Wait()
	for _, p := range pods {
		out, err := kubectl(ctx, "logs", p.name)
		if err != nil {
			return err
		}
		for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
			var line struct {
				Time time.Time
				Msg  string
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil {
				of(t.pods, p.name).set(line.Msg, line.Time)
			}
		}
	}
	return nil
}

// printBudget prints the parts of a message's way, as the median and the maximum
// over all of them for which both ends were seen.
func (r *result) printBudget(w io.Writer) {
	parts := []struct {
		name     string
		from, to string
	}{
		{"accepted → Job: KEDA's next look at the queue, and its creation", "sent", "job"},
		{"Job → pod: the Job controller", "job", "pod"},
		{"pod → scheduled", "pod", "Scheduled"},
		{"scheduled → image there: the pod's sandbox and network; no pull", "Scheduled", "Pulled"},
		{"image there → claimed: the container, the process, both logins, the claim", "Pulled", "claimed a message"},
		{"claimed → stored", "claimed a message", "stored"},
		{"stored → seen as ready: probe, kubelet, API server", "stored", "ready"},
		{"stored → done: the work", "stored", "finished"},
		{"done → container ended: acknowledged, closed, seen by the kubelet", "finished", "ended"},
		{"container ended → Job complete", "ended", "complete"},
	}
	took := make([][]time.Duration, len(parts))
	for _, p := range r.pods {
		job := p.name[:strings.LastIndex(p.name, "-")]
		all := of(r.trace.pods, p.name)
		all["job"], all["complete"] = of(r.trace.jobs, job)["created"], of(r.trace.jobs, job)["complete"]
		all["pod"], all["ready"], all["ended"] = p.seen, p.ready, p.ended
		for _, record := range r.records {
			if record.Job == p.name {
				all["sent"], all["stored"], all["finished"] = record.SentAt, record.StoredAt, record.FinishedAt
			}
		}
		for i, part := range parts {
			if from, to := all[part.from], all[part.to]; !from.IsZero() && !to.IsZero() {
				took[i] = append(took[i], to.Sub(from))
			}
		}
	}
	fmt.Fprintln(w, "\n| part | seen | median, ms | max, ms |\n| --- | --- | --- | --- |")
	for i, part := range parts {
		slices.Sort(took[i])
		fmt.Fprintf(w, "| %s | %d | %d | %d |\n", part.name, len(took[i]), quantile(took[i], 0.5).Milliseconds(), quantile(took[i], 1).Milliseconds())
	}
	fmt.Fprintln(w)
}
