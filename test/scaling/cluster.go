package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"keda-p2/services/contract/records"
)

const (
	scaledJob = "processor-job"

	pollInterval = 500 * time.Millisecond
	// settle is how long nothing may change after the last record is done: two
	// of KEDA's polls, in which a spare Job would show itself.
	settle = 12 * time.Second
)

// cluster is the project on a cluster, seen through kubectl.
type cluster struct {
	service string // complex-app's address on this machine
	stop    context.CancelFunc
	forward *exec.Cmd
	watcher *exec.Cmd

	mu   sync.Mutex
	pods map[string]*pod
}

// pod is a Job's. The times are those at which we were told, but for
// that of its creation.
type pod struct {
	name                    string
	created, running, ended time.Time
	seen                    time.Time // first
	succeeded               bool
}

func connect(ctx context.Context) (*cluster, error) {
	ctx, stop := context.WithCancel(ctx)
	c := &cluster{stop: stop, pods: map[string]*pod{}}
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

// startWatcher follows the Jobs' pods. KEDA deletes finished Jobs beyond its
// history limit, so what is there at the end is not all that there was.
func (c *cluster) startWatcher(ctx context.Context) error {
	c.watcher = exec.CommandContext(ctx, "kubectl", "get", "pods", "--selector", "scaledjob.keda.sh/name="+scaledJob,
		"--watch", "--output-watch-events", "--output", "json")
	out, err := c.watcher.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.watcher.Start(); err != nil {
		return err
	}
	go func() {
		events := json.NewDecoder(out)
		for {
			var e podEvent
			if events.Decode(&e) != nil {
				return
			}
			c.note(e, time.Now())
		}
	}()
	return nil
}

type podEvent struct {
	Type   string
	Object struct {
		Metadata struct {
			Name              string
			Labels            map[string]string
			CreationTimestamp time.Time
		}
		Status struct {
			Phase             string
			ContainerStatuses []struct {
				State struct{ Running, Terminated *struct{} }
			}
		}
	}
}

func (c *cluster) note(e podEvent, now time.Time) {
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
		set(&p.running, s.State.Running != nil)
		terminated = terminated || s.State.Terminated != nil
	}
	set(&p.ended, terminated || e.Type == "DELETED" || o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed")
	p.succeeded = p.succeeded || o.Status.Phase == "Succeeded"
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

// measure runs one load and waits until all of it is done and quiet.
func (c *cluster) measure(ctx context.Context, name string, l load) (*result, error) {
	if err := c.setWork(ctx, l.work); err != nil {
		return nil, err
	}
	if err := c.quiet(ctx, 0); err != nil {
		return nil, err
	}
	r := &result{name: name, load: l, start: time.Now()}
	ids := map[string]bool{}
	for _, b := range l.bursts {
		if err := wait(ctx, time.Until(r.start.Add(b.at))); err != nil {
			return nil, err
		}
		sent, err := c.send(ctx, name, b.events)
		if err != nil {
			return nil, err
		}
		for _, id := range sent {
			ids[id] = true
		}
	}
	for {
		all, err := c.records(ctx, name)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(r records.Record) bool { return !ids[r.ID] || r.Status != records.Done })
		if len(all) == l.events() {
			r.records = all
			break
		}
		if err := wait(ctx, pollInterval); err != nil {
			return nil, fmt.Errorf("%d of %d records are done: %w", len(all), l.events(), err)
		}
	}
	if err := c.quiet(ctx, settle); err != nil {
		return nil, err
	}
	r.pods = c.since(r.start)
	return r, nil
}

// quiet waits until no pod is at work, and none starts for a while.
func (c *cluster) quiet(ctx context.Context, settle time.Duration) error {
	since := time.Now()
	for {
		c.mu.Lock()
		busy := false
		for _, p := range c.pods {
			busy = busy || p.ended.IsZero() || p.seen.After(since)
		}
		c.mu.Unlock()
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

// setWork sets the ScaledJob's PROCESSING_TIME.
func (c *cluster) setWork(ctx context.Context, work time.Duration) error {
	out, err := kubectl(ctx, "get", "scaledjob", scaledJob, "--output", "json")
	if err != nil {
		return err
	}
	var object struct {
		Spec struct {
			JobTargetRef struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Env []struct{ Name, Value string }
						}
					}
				}
			}
		}
	}
	if err := json.Unmarshal(out, &object); err != nil {
		return err
	}
	for i, v := range object.Spec.JobTargetRef.Template.Spec.Containers[0].Env {
		if v.Name != "PROCESSING_TIME" {
			continue
		}
		if v.Value == work.String() {
			return nil
		}
		patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/jobTargetRef/template/spec/containers/0/env/%d/value","value":"%s"}]`, i, work)
		_, err := kubectl(ctx, "patch", "scaledjob", scaledJob, "--type", "json", "--patch", patch)
		return err
	}
	return errors.New("the ScaledJob has no PROCESSING_TIME")
}

// send sends n events at once and returns their ids.
func (c *cluster) send(ctx context.Context, name string, n int) ([]string, error) {
	ids, errs := make([]string, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			var answer struct{ ID string }
			errs[i] = c.request(ctx, http.MethodPost, "/send?name="+url.QueryEscape(name)+"&content=load", http.StatusAccepted, &answer)
			ids[i] = answer.ID
		})
	}
	all.Wait()
	return ids, errors.Join(errs...)
}

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
