// processor-job takes one message from RabbitMQ, stores it in MongoDB, works on
// it, acknowledges it and exits. KEDA starts one such Job for each message. With
// MESSAGES=0 it takes one message after the other, as a Deployment's pod does.
//
// Your own work goes into work.go. In the order in which they are used: main.go starts
// and stops, settings.go has the variables, probe.go the pod's readiness, process.go
// what is done with a message, retry.go the tries. trace.go is optional.
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
	"keda-p2/services/telemetry"
)

// version is set by the linker.
var version = "dev"

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
		if err != errNotDone {
			log.Error("failed", "reason", err.Error())
		}
		os.Exit(1)
	}
}

// errNotDone is returned by run after process has logged why.
var errNotDone = errors.New("the message is not done")

// run processes as many messages as the settings say, one after the other. An empty
// queue is not an error.
//
// What is opened first is closed last: the traces, so that the acknowledgement has its
// span; then RabbitMQ, because the process must not call itself successful before
// RabbitMQ has the acknowledgement.
func run(ctx context.Context, s settings, log *slog.Logger) (err error) {
	began := time.Now()
	traces := telemetry.StartTraces(ctx, "processor-job", version, log)
	defer traces.Stop()
	probe := &probe{}
	store, consumer, err := connect(ctx, s, probe, log)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // nothing is in flight any more
	defer func() {
		if closing := consumer.Close(); closing != nil && err == nil {
			err = fmt.Errorf("close the connection to RabbitMQ: %w", closing)
		}
	}()

	p := processor{store: store, work: s.work, job: s.PodName, workTimeout: s.WorkTimeout, retryTimeout: s.RetryTimeout, log: log}
	var process func(context.Context, delivery, time.Time) outcome = p.process
	process = traced(p, traces, s.RabbitMQ.Queue, s.MongoDB.Collection) // optional: trace.go
	working := workingContext(ctx, s.StopGrace, consumer)
	if s.stays() {
		probe.setReady() // a long-running worker is ready once it is connected
	}
	for taken := 0; s.stays() || taken < s.Messages; taken, began = taken+1, time.Now() {
		d, err := consumer.Claim(ctx, s.ClaimTimeout)
		switch {
		case s.stays() && errors.Is(err, queue.ErrEmpty):
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
		o := process(working, d, began)
		if s.stays() && (o == retried || o == deadLettered) {
			continue // this message has failed, others may not
		}
		if o != done {
			return errNotDone
		}
	}
	return nil
}

// workingContext returns the context of the message at hand. It outlives ctx, which
// ends with SIGTERM, by the given time. It ends at once when the connection does,
// because RabbitMQ then gives the message to another worker.
func workingContext(ctx context.Context, grace time.Duration, consumer *queue.Consumer) context.Context {
	working, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		time.AfterFunc(grace, func() { cancel(context.Cause(ctx)) })
	})
	go func() {
		<-consumer.Lost() // also when it is closed
		cancel(errors.New("the connection to RabbitMQ was lost, another worker gets the message"))
	}()
	return working
}

// connect connects to MongoDB and RabbitMQ and starts the probe, all at once. No
// message is claimed before MongoDB answers: an outage costs no message an attempt.
func connect(ctx context.Context, s settings, p *probe, log *slog.Logger) (store *records.Store, consumer *queue.Consumer, err error) {
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return p.start(s.ProbeAddr) })
	all.Go(func() error {
		return retry(ctx, s.RetryTimeout, log, func(ctx context.Context) (err error) {
			if store == nil {
				// fails without DNS when the URI is a mongodb+srv one
				if store, err = records.Open(s.MongoDB, "processor-job"); err != nil {
					return err
				}
			}
			return store.Ping(ctx)
		})
	})
	all.Go(func() error {
		return retry(ctx, s.RetryTimeout, log, func(ctx context.Context) (err error) {
			consumer, err = queue.Connect(ctx, s.RabbitMQ, s.PodName)
			return err
		})
	})
	if err := all.Wait(); err != nil {
		if consumer != nil {
			_ = consumer.Close() // nothing is claimed
		}
		if store != nil {
			_ = store.Close()
		}
		return nil, nil, err
	}
	return store, consumer, nil
}
