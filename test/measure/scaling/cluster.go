package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"keda-p2/services/contract/records"
)

const (
	pollInterval = time.Second
	// patience is how long an unfinished record may stay as it is, beside its
	// work, until it counts as lost.
	patience = 45 * time.Second
)

// cluster is the project on a cluster, seen through kubectl.
type cluster struct {
	consumer *consumer
	service  string // complex-app's address on this machine
	stop     context.CancelFunc
	forward  *exec.Cmd
	watcher  *exec.Cmd

	mu    sync.Mutex
	pods  map[string]*pod
	ended error // of the watch
}

// pod is a Job's or the Deployment's. The times are those at which we were told,
// but for that of its creation.
type pod struct {
	name                        string
	created, ready, told, ended time.Time
	seen                        time.Time // first
	succeeded                   bool
	interrupted                 bool // told to stop while it had a message
}

func connect(ctx context.Context) (*cluster, error) {
	found, err := findConsumer(ctx)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	c := &cluster{consumer: found, stop: stop, pods: map[string]*pod{}}
	for _, start := range []func(context.Context) error{c.startForward, c.startWatcher} {
		if err := start(ctx); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

func (c *cluster) close() {
	c.stop()
	for _, cmd := range []*exec.Cmd{c.forward, c.watcher} {
		if cmd != nil {
			_ = cmd.Wait()
		}
	}
}

// startForward makes complex-app reachable on a free local port.
func (c *cluster) startForward(ctx context.Context) error {
	c.forward = exec.CommandContext(ctx, "kubectl", "port-forward", "service/complex-app-keda-service", ":80", "--address", "127.0.0.1")
	out, err := c.forward.StdoutPipe()
	if err != nil {
		return err
	}
	var problem bytes.Buffer
	c.forward.Stderr = &problem
	if err := c.forward.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return fmt.Errorf("kubectl port-forward: %s", strings.TrimSpace(problem.String()))
	}
	// Forwarding from 127.0.0.1:41234 -> 8080
	_, rest, _ := strings.Cut(lines.Text(), "127.0.0.1:")
	port, _, found := strings.Cut(rest, " ")
	if !found {
		return fmt.Errorf("kubectl port-forward says %q", lines.Text())
	}
	c.service = "http://127.0.0.1:" + port
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return nil
}

// startWatcher follows the consumer's pods. KEDA deletes finished Jobs beyond its
// history limit, so what is there at the end is not all that there was.
func (c *cluster) startWatcher(ctx context.Context) error {
	// those that are there already, before anybody asks whether all is quiet
	out, err := kubectl(ctx, "get", "pods", "--selector", c.consumer.selector, "--output", "json")
	if err != nil {
		return err
	}
	var there struct{ Items []podObject }
	if err := json.Unmarshal(out, &there); err != nil {
		return err
	}
	for _, p := range there.Items {
		c.note(podEvent{Object: p}, time.Now())
	}
	c.watcher = exec.CommandContext(ctx, "kubectl", "get", "pods", "--selector", c.consumer.selector,
		"--watch", "--output-watch-events", "--output", "json")
	watched, err := c.watcher.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.watcher.Start(); err != nil {
		return err
	}
	go func() {
		events := json.NewDecoder(watched)
		for {
			var e podEvent
			if err := events.Decode(&e); err != nil {
				c.mu.Lock()
				c.ended = fmt.Errorf("kubectl get pods --watch: %w", err)
				c.mu.Unlock()
				return
			}
			if c.note(e, time.Now()) {
				go c.noteInterruption(ctx, e.Object.Metadata.Name)
			}
		}
	}()
	return nil
}

type podEvent struct {
	Type   string
	Object podObject
}

type podObject struct {
	Metadata struct {
		Name              string
		CreationTimestamp time.Time
		DeletionTimestamp string
	}
	Status struct {
		Phase             string
		Conditions        []struct{ Type, Status string }
		ContainerStatuses []struct {
			State struct{ Terminated *struct{} }
		}
	}
}

// note reports whether the pod was just told to stop.
func (c *cluster) note(e podEvent, now time.Time) (told bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := e.Object
	p := c.pods[o.Metadata.Name]
	if p == nil {
		p = &pod{name: o.Metadata.Name, seen: now, created: o.Metadata.CreationTimestamp}
		c.pods[p.name] = p
	}
	set := func(t *time.Time, reached bool) {
		if reached && t.IsZero() {
			*t = now
		}
	}
	terminated := false
	for _, s := range o.Status.ContainerStatuses {
		terminated = terminated || s.State.Terminated != nil
	}
	for _, condition := range o.Status.Conditions {
		set(&p.ready, condition.Type == "Ready" && condition.Status == "True")
	}
	told = p.told.IsZero() && o.Metadata.DeletionTimestamp != "" && !terminated
	set(&p.told, told)
	set(&p.ended, terminated || e.Type == "DELETED" || o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed")
	p.succeeded = p.succeeded || o.Status.Phase == "Succeeded"
	return told
}

// noteInterruption asks at once, because the record is another pod's as soon as
// the message is.
func (c *cluster) noteInterruption(ctx context.Context, name string) {
	all, err := c.records(ctx, "")
	if err != nil {
		return // the run has ended, or fails by it too
	}
	if slices.ContainsFunc(all, func(r records.Record) bool { return r.Job == name && r.Status == records.Processing }) {
		c.mu.Lock()
		c.pods[name].interrupted = true
		c.mu.Unlock()
	}
}

// since returns the pods that were created from the given time on. Kubernetes
// keeps that time in whole seconds.
func (c *cluster) since(t time.Time) []pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []pod
	for _, p := range c.pods {
		if !p.created.Before(t.Truncate(time.Second)) {
			all = append(all, *p)
		}
	}
	slices.SortFunc(all, func(a, b pod) int { return a.created.Compare(b.created) })
	return all
}

// measure sends one load to a variant of the consumer, and waits until it is
// done, or does not go on, and quiet.
func (c *cluster) measure(ctx context.Context, l load, v variant) (*result, error) {
	v.work, v.claimDelay = l.work, l.claimDelay
	if err := c.quiet(ctx, 0); err != nil {
		return nil, err
	}
	if err := c.consumer.apply(ctx, v); err != nil {
		return nil, err
	}
	// KEDA looks at the queue right after the change, and then at its interval.
	// Every moment of it must be as likely as any other.
	interval := cmp.Or(v.interval, c.consumer.interval)
	if err := wait(ctx, interval+rand.N(interval)); err != nil {
		return nil, err
	}
	// a name for these records: a-load-1a2b3c
	name := fmt.Sprintf("%s-%06x", l.name, rand.N(1<<24))
	r := &result{load: l, variant: v, jobs: c.consumer.jobs(), max: c.consumer.max, interval: interval, start: time.Now()}
	for _, b := range l.bursts {
		if err := wait(ctx, time.Until(r.start.Add(b.at))); err != nil {
			return nil, err
		}
		if err := c.send(ctx, name, b.events); err != nil {
			return nil, err
		}
	}
	var err error
	if r.records, err = c.finished(ctx, name, l, v); err != nil {
		return nil, err
	}
	// a spare Job would show itself in KEDA's next two looks
	if err := c.quiet(ctx, 2*interval+2*time.Second); err != nil {
		return nil, err
	}
	r.pods = c.since(r.start)
	return r, nil
}

// finished waits for the load's records to be done, and returns them. When
// nothing has changed for long, the rest is lost.
func (c *cluster) finished(ctx context.Context, name string, l load, v variant) ([]records.Record, error) {
	var before []records.Record
	since := time.Now()
	for {
		all, err := c.records(ctx, name)
		if err != nil {
			return nil, err
		}
		if !reflect.DeepEqual(all, before) {
			before, since = all, time.Now()
		}
		open := func(r records.Record) bool { return r.Status != records.Done }
		if len(all) == l.events() && !slices.ContainsFunc(all, open) || time.Since(since) > v.work+v.claimDelay+patience {
			return slices.DeleteFunc(all, open), nil
		}
		if err := wait(ctx, pollInterval); err != nil {
			return nil, fmt.Errorf("%d of %d records are there: %w", len(all), l.events(), err)
		}
	}
}

// quiet waits until there is no pod at work, or at all when it would stay, and
// none starts for a while.
func (c *cluster) quiet(ctx context.Context, settle time.Duration) error {
	since := time.Now()
	for {
		c.mu.Lock()
		busy, ended := false, c.ended
		for _, p := range c.pods {
			busy = busy || p.ended.IsZero() || p.seen.After(since)
		}
		c.mu.Unlock()
		if ended != nil {
			return ended
		}
		if busy {
			since = time.Now()
		} else if time.Since(since) >= settle {
			return nil
		}
		if err := wait(ctx, pollInterval); err != nil {
			return fmt.Errorf("pods are still at work: %w", err)
		}
	}
}

// send sends n events at once.
func (c *cluster) send(ctx context.Context, name string, n int) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			var answer any
			errs[i] = c.request(ctx, http.MethodPost, "/send?name="+url.QueryEscape(name)+"&content=load", http.StatusAccepted, &answer)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// records returns those with a name, or all of them.
func (c *cluster) records(ctx context.Context, name string) ([]records.Record, error) {
	var all []records.Record
	return all, c.request(ctx, http.MethodGet, "/data?name="+url.QueryEscape(name), http.StatusOK, &all)
}

func (c *cluster) request(ctx context.Context, method, path string, status int, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, c.service+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != status {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, body)
	}
	return json.Unmarshal(body, answer)
}

func kubectl(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "kubectl", args...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return nil, fmt.Errorf("kubectl %s: %s", args[0], bytes.TrimSpace(failed.Stderr))
	}
	return out, err
}

// wait returns early, with an error, when ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
