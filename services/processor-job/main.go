// processor-job takes one message from RabbitMQ, stores it in MongoDB, works on
// it, acknowledges it and exits. KEDA starts one such Job for each message. With
// MESSAGES=0 it takes one message after the other, as a Deployment's pod does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/contract/telemetry"
	"keda-p2/services/processor-job/worker"
)

// version is set by the linker.
var version = "dev"

// closeTimeout bounds the end of MongoDB's connections.
const closeTimeout = time.Second

func main() {
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *showVersion {
		fmt.Println("processor-job", version)
		return
	}
	var s settings
	if err := config.Load(&s); err != nil {
		fmt.Fprintln(os.Stderr, "processor-job:", err)
		os.Exit(1)
	}
	log := telemetry.NewLogger(os.Stdout, s.LogLevel, s.LogFormat).With("job", s.PodName)
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) // until the process ends
	if err := run(ctx, s, log); err != nil {
		worker.Report(log, err)
		os.Exit(1)
	}
}

// run processes as many messages as the settings say, one after the other. An
// empty queue is not an error.
func run(ctx context.Context, s settings, log *slog.Logger) (err error) {
	began := time.Now()
	tracing := telemetry.Open(os.Getenv, "processor-job", version, log)
	defer tracing.Close() // last: by then the acknowledgement has its span
	store, err := records.Open(s.MongoDB, "processor-job")
	if err != nil {
		return err
	}
	closed := make(chan struct{})
	closeStore := func() {
		defer close(closed)
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = store.Close(ctx) // nothing is in flight any more
	}
	defer func() { <-closed }()

	probe := &probe{}
	consumer, err := connect(ctx, s, store, probe, log)
	if err != nil {
		closeStore()
		return err
	}
	// The process must not end, nor call itself successful, before RabbitMQ has
	// the acknowledgement.
	defer func() {
		go closeStore() // at the same time
		if closing := consumer.Close(); closing != nil && err == nil {
			err = fmt.Errorf("close the connection to RabbitMQ: %w", closing)
		}
	}()

	tracer := &worker.Tracer{Tracing: tracing, Job: s.PodName, Queue: s.RabbitMQ.Queue, Collection: s.MongoDB.Collection}
	tracer.Connected()
	working, cancel := workingContext(ctx, s.StopGrace, consumer)
	defer cancel()
	w := worker.Worker{Store: tracer.Store(store), Job: s.PodName, ProcessingTime: s.ProcessingTime, RetryTimeout: s.RetryTimeout, Log: log, Trace: tracer}
	if s.stays() {
		probe.setReady() // for messages, not for one of them
	}
	for taken := 0; s.stays() || taken < s.Messages; taken++ {
		delivery, err := consumer.Claim(ctx, s.ClaimTimeout)
		switch {
		case s.stays() && errors.Is(err, queue.ErrEmpty):
			began = time.Now()
			continue
		case s.stays() && ctx.Err() != nil:
			log.Info("told to stop, with no message at hand", "reason", context.Cause(ctx).Error())
			return nil
		case errors.Is(err, queue.ErrEmpty):
			log.Info("the queue is empty, nothing to do", "waited", s.ClaimTimeout.String())
			return nil
		case err != nil:
			return err
		}
		probe.setReady()
		err = w.Process(working, delivery, began)
		began = time.Now() // to look for the next one
		if s.stays() && errors.Is(err, worker.ErrDeadLetter) {
			worker.Report(log, err) // this message has, others may not
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// workingContext is for the message at hand. It outlives ctx, which ends with
// SIGTERM, by the given time. It ends at once when the connection does, because
// RabbitMQ then gives the message to somebody else.
func workingContext(ctx context.Context, grace time.Duration, consumer *queue.Consumer) (context.Context, func()) {
	working, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-consumer.Lost():
			cancel(errors.New("the connection to RabbitMQ was lost, another worker gets the message"))
		case <-ctx.Done():
			select {
			case <-time.After(grace):
				cancel(context.Cause(ctx))
			case <-working.Done():
			}
		case <-working.Done():
		}
	}()
	return working, func() { cancel(nil) }
}

// connect reaches MongoDB and RabbitMQ and starts the probe, all at once. No message
// is claimed before MongoDB answers, so an outage costs no message one of its
// attempts.
func connect(ctx context.Context, s settings, store *records.Store, probe *probe, log *slog.Logger) (*queue.Consumer, error) {
	var consumer *queue.Consumer
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return probe.start(s.ProbeAddr) })
	all.Go(func() error {
		return worker.Retry(ctx, s.RetryTimeout, log, store.Ping)
	})
	all.Go(func() error {
		return worker.Retry(ctx, s.RetryTimeout, log, func(ctx context.Context) (err error) {
			consumer, err = queue.Connect(ctx, s.RabbitMQ, s.PodName)
			return err
		})
	})
	if err := all.Wait(); err != nil {
		if consumer != nil {
			_ = consumer.Close() // nothing is claimed
		}
		return nil, err
	}
	return consumer, nil
}
