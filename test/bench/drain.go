package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"keda-p2/services/contract/queue"
	"keda-p2/services/sandbox/process"
	"keda-p2/services/sandbox/scaler"
)

const (
	drainMessages = 5000 // in all rounds together
	drainGoal     = 1.15
	// drainInterval keeps ten Jobs at work all the time: with KEDA's second it would
	// be the second that is measured.
	drainInterval  = 10 * time.Millisecond
	forgetInterval = 100 * time.Millisecond
	drainTimeout   = 5 * time.Minute
)

func benchDrain(ctx context.Context, b *bench) error {
	app, err := b.startApp(ctx, nil) // declares the queue
	if err != nil {
		return err
	}
	app.stop()
	n := drainMessages / b.rounds
	var minimal, two, ours []float64
	raw := func(args ...string) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.Path, cmd.Args, cmd.Env = b.program("raw"), append([]string{"raw"}, args...), b.env(nil)
		}
	}
	for round := range b.rounds {
		err := b.takeTurns(ctx, round, []func() error{
			func() error { return note(&minimal)(b.drain(ctx, n, raw("work"))) },
			func() error { return note(&two)(b.drain(ctx, n, raw("-done", "work"))) },
			func() error { return note(&ours)(b.drain(ctx, n, nil)) },
		})
		if err != nil {
			return err
		}
		b.say("round %d of %d, %d messages: minimal %.1f s, with two writes %.1f s, processor-job %.1f s", round+1, b.rounds, n, last(minimal), last(two), last(ours))
	}
	of := ratios(ours, minimal)
	b.print("\n| %d messages, ten Jobs at once | minimal, s | with two writes, s | processor-job, s | of minimal | of that with two writes | |", drainMessages)
	b.print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
	b.print("| %d rounds of %d | %.1f | %.1f | %.1f | %s | %s | %s |", b.rounds, n, median(minimal), median(two), median(ours),
		spread(of), spread(ratios(ours, two)), atMost(of, drainGoal))
	return nil
}

// drain returns the seconds that the sandbox's Jobs need for n messages. It changes
// their commands unless change is nil.
func (b *bench) drain(ctx context.Context, n int, change func(*exec.Cmd)) (float64, error) {
	if err := b.fill(ctx, n); err != nil {
		return 0, err
	}
	job, err := scaler.Load("deploy")
	if err != nil {
		return 0, err
	}
	job.Interval, job.Queue = drainInterval, b.RabbitMQ.Queue
	dir, err := os.MkdirTemp(b.dir, "jobs-")
	if err != nil {
		return 0, err
	}
	jobs, err := scaler.New(scaler.Config{
		Job: job, Processor: b.program("processor-job"), Dir: dir, Log: slog.New(slog.DiscardHandler),
		Env: map[string]string{
			"RABBITMQ_HOST": b.RabbitMQ.Host, "RABBITMQ_PORT": b.RabbitMQ.Port, "RABBITMQ_USER": b.RabbitMQ.User, "RABBITMQ_PASSWORD": b.RabbitMQ.Password,
			"RABBITMQ_QUEUE": b.RabbitMQ.Queue,
			"MONGODB_HOST":   b.MongoDB.Host, "MONGODB_PORT": b.MongoDB.Port, "MONGODB_USER": b.MongoDB.User, "MONGODB_PASSWORD": b.MongoDB.Password,
			"PROCESSING_TIME": "0s",
		},
		Start: func(cmd *exec.Cmd, log string) (*process.Process, error) {
			if change != nil {
				change(cmd)
			}
			return process.Start(cmd, log)
		},
	})
	if err != nil {
		return 0, err
	}
	running, stop := context.WithCancel(ctx)
	ended, forgotten := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() { defer close(ended); jobs.Run(running) }()
	go func() {
		defer close(forgotten)
		for running.Err() == nil {
			_ = b.forget(running) // what this one leaves, the next one finds
			select {
			case <-time.After(forgetInterval):
			case <-running.Done():
			}
		}
	}()
	limited, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for jobs.Totals().Succeeded < n && limited.Err() == nil {
		select {
		case <-time.After(tick):
		case <-limited.Done():
		}
	}
	took := time.Since(began).Seconds()
	stop()
	<-ended
	<-forgotten
	if t := jobs.Totals(); t.Succeeded < n {
		logs, _ := filepath.Glob(filepath.Join(dir, "*"))
		return took, fmt.Errorf("of %d messages, %+v; the Jobs' logs: %d in %s", n, t, len(logs), dir)
	}
	return took, b.requireEmpty(ctx)
}

// requireEmpty checks that every message was taken.
func (b *bench) requireEmpty(ctx context.Context) error {
	counter := &queue.Counter{Config: b.RabbitMQ, Name: "bench"}
	defer counter.Close()
	counts, err := counter.Count(ctx)
	if err == nil && counts.Ready > 0 {
		err = fmt.Errorf("%d messages are left", counts.Ready)
	}
	return err
}
