package scaler

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
)

// Status is how far a Job is.
type Status string

const (
	Running   Status = "running"
	Succeeded Status = "succeeded"
	Failed    Status = "failed"
	Stopped   Status = "stopped" // because the scaler ended
)

// Job is one run of the processor.
type Job struct {
	Name, Pod string
	Status    Status
	Ready     bool // the pod's readiness probe succeeds
	Started   time.Time
	Finished  time.Time // zero while it runs
	Reason    string    // why it failed, in one line
}

// maxStopGrace bounds how long running Jobs may delay the scaler's end,
// whatever grace period their pods have.
const maxStopGrace = 10 * time.Second

// start runs a new Job until it finishes.
func (s *Scaler) start() {
	name := s.c.Job.Name + "-" + suffix()
	j := &Job{Name: name, Pod: name + "-" + suffix(), Status: Running, Started: time.Now()}
	s.mu.Lock()
	s.jobs = append(s.jobs, j)
	s.totals.Started++
	s.mu.Unlock()
	s.c.Log.Info("job started", "job", j.Name)

	// pods have a port 8081 each, processes share the machine's
	port, release, err := freeport.Reserve()
	if err != nil {
		s.finish(j, Failed, err.Error())
		return
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := s.run(j, addr)
	if err != nil {
		release()
		s.finish(j, Failed, err.Error())
		return
	}
	s.wait.Go(func() {
		defer release()
		s.watch(j, p, "http://"+addr+s.c.Job.ProbePath)
	})
}

// run starts the Job's process.
func (s *Scaler) run(j *Job, probeAddr string) (*process.Process, error) {
	spec := s.c.Job
	paths := map[string]string{}
	for _, f := range spec.Folders {
		path := filepath.Join(s.folder(j), f.Volume, f.SubPath)
		if err := f.make(path); err != nil {
			return nil, err
		}
		paths[f.MountPath] = path
	}
	here := func(text string) string { return relocate(strings.ReplaceAll(text, PodName, j.Pod), paths) }
	env := map[string]string{"PATH": os.Getenv("PATH")} // as an image has one
	if tmp, ok := paths["/tmp"]; ok {
		env["TMPDIR"] = tmp
	}
	for k, v := range s.env {
		env[k] = here(v)
	}
	env["PROBE_ADDR"] = probeAddr
	cmd := exec.Command(s.program)
	for _, argument := range slices.Concat(spec.Command[min(1, len(spec.Command)):], spec.Args) {
		cmd.Args = append(cmd.Args, here(argument))
	}
	cmd.Env, cmd.Dir = process.Env(env), here(spec.WorkingDir)
	return s.c.Start(cmd, s.logFile(j))
}

// make makes a volume's folder, with its files. A mount of one file has its name as
// the sub-path.
func (f Folder) make(path string) error {
	if content, ok := f.Files[f.SubPath]; ok {
		f.Files, path = map[string]string{filepath.Base(path): content}, filepath.Dir(path)
	}
	err := os.MkdirAll(path, 0o700)
	for name, content := range f.Files {
		file := filepath.Join(path, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600))
	}
	return err
}

func (s *Scaler) folder(j *Job) string { return filepath.Join(s.c.Dir, j.Pod+".volumes") }

func (s *Scaler) logFile(j *Job) string { return filepath.Join(s.c.Dir, j.Pod+".log") }

// watch follows a Job as the kubelet and the Job controller would.
func (s *Scaler) watch(j *Job, p *process.Process, url string) {
	spec := s.c.Job
	var probes, deadline <-chan time.Time // never, unless the manifest has them
	ready := readiness{threshold: spec.ProbeFailures}
	if spec.ProbePath == "" {
		s.setReady(j, true)
	} else {
		ticker := time.NewTicker(spec.ProbePeriod)
		defer ticker.Stop()
		probes = ticker.C
	}
	if spec.Deadline > 0 {
		deadline = time.After(spec.Deadline)
	}
	for {
		select {
		case <-probes:
			s.setReady(j, ready.after(succeeds(url)))
		case <-deadline:
			p.Stop(spec.Grace)
			s.finish(j, Failed, fmt.Sprintf("DeadlineExceeded: it ran for more than %s", spec.Deadline))
			return
		case <-s.stopping:
			p.Stop(min(spec.Grace, maxStopGrace))
			s.finish(j, Stopped, "")
			return
		case <-p.Done:
			if p.Err() == nil {
				s.finish(j, Succeeded, "")
			} else {
				s.finish(j, Failed, fmt.Sprintf("%s: %s", p.Err(), lastWords(p)))
			}
			return
		}
	}
}

// readiness is what the kubelet makes of a pod's probes: one success makes it ready, and
// only so many failures in a row take that back.
type readiness struct {
	ready               bool
	failures, threshold int64
}

func (r *readiness) after(success bool) bool {
	if success {
		r.ready, r.failures = true, 0
	} else if r.failures++; r.failures >= r.threshold {
		r.ready = false
	}
	return r.ready
}

// succeeds makes one readiness probe.
func succeeds(url string) bool {
	client := http.Client{Timeout: time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode >= 200 && resp.StatusCode < 400
}

func (s *Scaler) setReady(j *Job, ready bool) {
	s.mu.Lock()
	j.Ready = ready
	s.mu.Unlock()
}

func (s *Scaler) finish(j *Job, status Status, reason string) {
	_ = os.RemoveAll(s.folder(j)) // what is left goes with the scaler's folder
	s.mu.Lock()
	j.Status, j.Ready, j.Reason, j.Finished = status, false, reason, time.Now()
	switch status {
	case Succeeded:
		s.totals.Succeeded++
	case Failed:
		s.totals.Failed++
	}
	took := j.Finished.Sub(j.Started).Round(100 * time.Millisecond)
	s.mu.Unlock()
	if status == Failed {
		s.c.Log.Warn("job failed", "job", j.Name, "after", took, "reason", reason)
	} else {
		s.c.Log.Info("job "+string(status), "job", j.Name, "after", took)
	}
}

// prune forgets the oldest finished Jobs beyond the history limits, and their
// logs.
func (s *Scaler) prune() {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := map[Status]int{Succeeded: s.c.Job.SuccessfulHistory, Failed: s.c.Job.FailedHistory}
	forget := map[*Job]bool{}
	newestFirst := func(a, b *Job) int { return b.Finished.Compare(a.Finished) }
	for _, j := range slices.SortedFunc(slices.Values(s.jobs), newestFirst) {
		if _, limited := left[j.Status]; !limited {
			continue
		}
		if left[j.Status]--; left[j.Status] < 0 {
			forget[j] = true
			_ = os.Remove(s.logFile(j))
		}
	}
	s.jobs = slices.DeleteFunc(s.jobs, func(j *Job) bool { return forget[j] })
}

// lastWords is the reason in the last line that a process logged, or else that
// line.
func lastWords(p *process.Process) string {
	line := p.Tail(1)
	var entry struct{ Reason string }
	if json.Unmarshal([]byte(line), &entry) == nil && entry.Reason != "" {
		return entry.Reason
	}
	return line
}

// suffix is what Kubernetes appends to a generated name.
func suffix() string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	b := make([]byte, 5)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}
