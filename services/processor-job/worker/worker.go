// Package worker does what is to be done with one claimed message.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// ErrDeadLetter is returned for a message that can never be processed. It is in
// the dead-letter queue then.
var ErrDeadLetter = errors.New("moved to the dead-letter queue")

// deadLetterTimeout bounds the wait for RabbitMQ to confirm a dead letter.
const deadLetterTimeout = 5 * time.Second

// Store keeps the record of a message, as records.Store does.
type Store interface {
	Begin(ctx context.Context, m contract.Message, run records.Run) error
	Finish(ctx context.Context, id string) error
}

// Worker processes messages.
type Worker struct {
	Store          Store
	Job            string        // the pod's name, kept with the record
	ProcessingTime time.Duration // how long the work takes
	RetryTimeout   time.Duration // how long to keep trying the store at each step
	Log            *slog.Logger
	Trace          *Tracer // nil makes no spans
}

// Process stores the message, works on it and acknowledges it, in this order:
//
//   - stored before the work, so that everybody can see who works on it;
//   - done before it is acknowledged, so that a Job that dies in between
//     leaves a message that the next one only has to acknowledge;
//   - acknowledged last: until then RabbitMQ gives it to another Job when this
//     one is gone.
//
// A message that cannot be processed now is given back, one that never can be
// goes to the dead-letter queue. Both are an error. The record keeps when the
// worker began to look for this message, and that it has claimed it now.
func (w Worker) Process(ctx context.Context, d *queue.Delivery, began time.Time) (err error) {
	run := records.Run{Job: w.Job, Attempt: d.Attempt, StartedAt: began, ClaimedAt: time.Now()}
	log := w.Log.With("id", d.ID(), "attempt", d.Attempt)
	ctx, end := w.Trace.attempt(ctx, d, run)
	defer func() {
		end(err)
		if err != nil {
			err = &Failure{err, ctx, log}
		}
	}()
	m, err := d.Message()
	if err != nil {
		return w.giveUp(ctx, d, err)
	}
	log.InfoContext(ctx, "claimed a message", "name", m.Name)

	err = Retry(ctx, w.RetryTimeout, log, func(ctx context.Context) error {
		return w.Store.Begin(ctx, m, run)
	})
	if errors.Is(err, records.ErrDone) {
		log.InfoContext(ctx, "an earlier Job has done this message, it only remains to acknowledge it")
		return w.Trace.settle(ctx, "ack", d.Ack)
	}
	if err != nil {
		return w.giveBack(ctx, d, err)
	}
	log.InfoContext(ctx, "stored, working", "for", w.ProcessingTime.String())

	if err := w.Trace.step(ctx, "work", trace.SpanKindInternal, w.work); err != nil {
		return w.giveBack(ctx, d, err)
	}
	err = Retry(ctx, w.RetryTimeout, log, func(ctx context.Context) error {
		return w.Store.Finish(ctx, m.ID)
	})
	if err != nil {
		return w.giveBack(ctx, d, err)
	}
	if err := w.Trace.settle(ctx, "ack", d.Ack); err != nil {
		return fmt.Errorf("acknowledge %s: %w", m.ID, err)
	}
	log.InfoContext(ctx, "done")
	return nil
}

// work stands in for something heavy, such as converting a video. Put yours
// here; end it when ctx ends.
func (w Worker) work(ctx context.Context) error {
	select {
	case <-time.After(w.ProcessingTime):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giveBack lets another Job have the message. It is one of the message's attempts
// when this Job was told to stop: work that always takes too long for the Job's
// deadline must end as a dead letter. An outage of MongoDB is not its fault.
func (w Worker) giveBack(ctx context.Context, d *queue.Delivery, reason error) error {
	if err := w.Trace.settle(ctx, "nack", func() error { return d.Return(ctx.Err() != nil) }); err != nil {
		// there is no connection, and RabbitMQ takes the message back by itself
		return fmt.Errorf("message %q goes back to the queue: %w", d.ID(), reason)
	}
	return fmt.Errorf("message %q was given back: %w", d.ID(), reason)
}

// giveUp works even when ctx has ended, so that such a message is not tried
// again only because its first Job was told to stop.
func (w Worker) giveUp(ctx context.Context, d *queue.Delivery, reason error) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), deadLetterTimeout)
	defer cancel()
	if err := d.DeadLetter(limited, reason.Error(), w.Job); err != nil {
		return w.giveBack(ctx, d, err)
	}
	return fmt.Errorf("message %q was %w: %w", d.ID(), ErrDeadLetter, reason)
}
