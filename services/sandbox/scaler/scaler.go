package scaler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/sandbox/process"
)

// pollTimeout bounds one poll of the queue, login included.
const pollTimeout = 15 * time.Second

// Config says what to run.
type Config struct {
	Job       ScaledJob
	Processor string            // the program of a Job
	Env       map[string]string // wins over the manifest's variables
	Dir       string            // an empty folder for the Jobs' logs
	Log       *slog.Logger
	// Start takes the place of process.Start, unless it is nil. A test may change
	// a Job's variables there, and keep the process to kill it.
	Start func(cmd *exec.Cmd, log string) (*process.Process, error)
}

// Totals counts the Jobs since the scaler started, forgotten ones included.
type Totals struct{ Started, Succeeded, Failed int }

// Scaler starts Jobs for the messages of a queue.
type Scaler struct {
	c          Config
	program    string
	env        map[string]string
	connection queue.Config

	conn  *amqp.Connection // nil unless connected
	state string           // of the queue, as logged last

	wait     sync.WaitGroup
	stopping chan struct{}

	mu     sync.Mutex // guards what follows, and the Jobs themselves
	jobs   []*Job     // running ones and the history
	totals Totals
}

// New prepares a scaler. The connection to RabbitMQ is that of the Jobs: the
// variables RABBITMQ_HOST and so on, of Config.Env or else of the manifest.
func New(c Config) (*Scaler, error) {
	program, err := findProgram(c.Job.Command, c.Processor)
	if err != nil {
		return nil, err
	}
	env := maps.Clone(c.Job.Env)
	maps.Copy(env, c.Env)
	if c.Start == nil {
		c.Start = process.Start
	}
	s := &Scaler{c: c, program: program, env: env, stopping: make(chan struct{})}
	var port config.Port
	if err := port.Decode(cmp.Or(env["RABBITMQ_PORT"], "5672")); err != nil {
		return nil, fmt.Errorf("RABBITMQ_PORT: %w", err)
	}
	s.connection = queue.Config{
		Server: config.Server{
			Host: cmp.Or(env["RABBITMQ_HOST"], "localhost"),
			User: env["RABBITMQ_USER"], Password: env["RABBITMQ_PASSWORD"],
			CAFile: env["RABBITMQ_CA_FILE"],
		},
		Port:  port,
		VHost: cmp.Or(env["RABBITMQ_VHOST"], "/"),
		Queue: c.Job.Queue,
		// it declares no queue, so their arguments do not matter
		MaxAttempts: 1, RetryMin: time.Second, RetryMax: time.Second,
	}
	if tls := env["RABBITMQ_TLS"]; tls != "" {
		if s.connection.TLS, err = strconv.ParseBool(tls); err != nil {
			return nil, fmt.Errorf("RABBITMQ_TLS: %q is not true or false", tls)
		}
	}
	if err := s.connection.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// findProgram returns the path of what a Job runs. In the images of this project the
// processor is /service. Any other command must be there on this machine.
func findProgram(command []string, processor string) (string, error) {
	if len(command) > 0 && !slices.Contains([]string{"service", filepath.Base(processor)}, filepath.Base(command[0])) {
		path, err := exec.LookPath(command[0])
		if err != nil {
			return "", fmt.Errorf("the manifest's command is not on this machine: %w", err)
		}
		return path, nil
	}
	// a path, lest exec looks for the program in the PATH
	path, err := filepath.Abs(processor)
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		return "", fmt.Errorf("the processor's program: %w", err)
	}
	return path, nil
}

// Run polls the queue and starts Jobs until ctx ends. It then stops the
// running Jobs, whose messages go back to the queue, and returns when none is
// left.
func (s *Scaler) Run(ctx context.Context) {
	ticker := time.NewTicker(s.c.Job.Interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.pass(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	close(s.stopping)
	s.wait.Wait()
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

// pass is one poll of the queue and what follows from it. It counts the Jobs
// first: a Job that claims its message in between then delays another one to
// the next pass. KEDA counts them last, and starts a spare Job in that moment.
func (s *Scaler) pass(ctx context.Context) {
	running, pending := s.c.Job.Count(s.Jobs())
	// without an answer the queue counts as empty, as it does for KEDA
	ready, err := s.readyMessages(ctx)
	if ctx.Err() != nil {
		return
	}
	s.report(err)
	for range s.c.Job.Strategy.NewJobs(ready, running, pending) {
		s.start()
	}
	s.prune()
}

// readyMessages counts the messages that no Job has claimed. Like KEDA it never
// declares the queue.
func (s *Scaler) readyMessages(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	if s.conn == nil || s.conn.IsClosed() {
		conn, err := queue.Dial(ctx, s.connection, s.c.Job.Name+" scaler")
		if err != nil {
			return 0, err
		}
		s.conn = conn
	}
	// the library knows no context
	conn := s.conn
	defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })()
	ch, err := conn.Channel()
	if err != nil {
		return 0, err
	}
	q, err := ch.QueueDeclarePassive(s.c.Job.Queue, true, false, false, false, nil)
	if err != nil {
		return 0, err // the broker has closed the channel
	}
	return int64(q.Messages), ch.Close()
}

// report logs what has changed about the queue, once.
func (s *Scaler) report(err error) {
	state, level, attrs := "watching the queue", slog.LevelInfo, []any{"queue", s.c.Job.Queue}
	var refused *amqp.Error
	switch {
	case errors.As(err, &refused) && refused.Code == amqp.NotFound:
		state = "the queue does not exist yet"
	case err != nil:
		state, level = "RabbitMQ cannot be reached, trying again", slog.LevelWarn
		attrs = append(attrs, "error", err)
	}
	if state != s.state {
		s.state = state
		s.c.Log.Log(context.Background(), level, state, attrs...)
	}
}

// Count tells how many of the Jobs are unfinished, and how many of those are
// pending.
func (j ScaledJob) Count(jobs []Job) (running, pending int64) {
	for _, job := range jobs {
		if job.Status != Running {
			continue
		}
		running++
		if j.PendingUntilReady && !job.Ready {
			pending++
		}
	}
	return running, pending
}

// Jobs returns the Jobs that run and those in the history, oldest first.
func (s *Scaler) Jobs() []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	jobs := make([]Job, len(s.jobs))
	for i, j := range s.jobs {
		jobs[i] = *j
	}
	return jobs
}

// Totals counts all Jobs so far.
func (s *Scaler) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.totals
}
