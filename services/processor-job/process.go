package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"keda-p2/services/contract"
	"keda-p2/services/contract/records"
)

// stopPatience is how long work may take to return after its context has ended.
const stopPatience = 3 * time.Second

// outcome says what became of a message.
type outcome string

const (
	done         outcome = "done"
	retried      outcome = "will be tried again"
	deadLettered outcome = "moved to the dead-letter queue"
	// released messages go to another worker at once: this one cannot go on.
	released outcome = "given back"
	// crashed means that work panicked or does not return, or that a dead letter could not
	// be moved: the message is settled, and the process must end.
	crashed outcome = "given back by a worker that cannot go on"
)

// delivery is a claimed message, as queue.Delivery is.
type delivery interface {
	Attempt() int
	LastAttempt() bool
	Message() (contract.Message, error)
	Ack() error
	Retry() error
	Release() error
	DeadLetter(ctx context.Context, reason, job string) error
}

// store keeps the records, as records.Store does.
type store interface {
	Begin(ctx context.Context, m contract.Message, run records.Run) error
	Finish(ctx context.Context, id string) error
	Fail(ctx context.Context, id, job string, status records.Status, reason string) error
}

// processor processes messages.
type processor struct {
	store        store
	work         func(context.Context, contract.Message) error
	job          string        // the pod's name, kept with the record
	workTimeout  time.Duration // for work
	retryTimeout time.Duration // how long to keep trying the store at each step
	log          *slog.Logger
}

// process stores the message, works on it and acknowledges it, in this order:
//
//   - stored before the work, so that everybody can see who works on it;
//   - done before it is acknowledged, so that a Job that dies in between leaves a
//     message that the next one only has to acknowledge;
//   - acknowledged last: until then RabbitMQ gives it to another Job when this one is
//     gone.
//
// Work that fails is treated alike: the record says so before RabbitMQ does. began is
// when the worker began to look for this message. process logs why a message is not
// done.
func (p processor) process(ctx context.Context, d delivery, began time.Time) outcome {
	run := records.Run{Job: p.job, Attempt: d.Attempt(), StartedAt: began, ClaimedAt: time.Now()}
	m, err := d.Message() // the id is there in any case
	p.log = p.log.With("id", m.ID, "attempt", run.Attempt)
	if err != nil {
		return p.deadLetter(ctx, d, err)
	}
	p.log.InfoContext(ctx, "claimed a message", "bytes", len(m.Name)+len(m.Content))

	err = p.retryStore(ctx, func(ctx context.Context) error { return p.store.Begin(ctx, m, run) })
	if errors.Is(err, records.ErrDone) {
		p.log.InfoContext(ctx, "an earlier Job has done this message, only acknowledging it")
		return p.acknowledge(ctx, d)
	}
	if err != nil {
		return p.release(ctx, d, err)
	}
	p.log.InfoContext(ctx, "stored, working")

	if err := p.runWork(ctx, m); err != nil {
		if ctx.Err() != nil {
			return p.release(ctx, d, context.Cause(ctx))
		}
		return p.fail(ctx, d, m.ID, err)
	}
	if err := p.retryStore(ctx, func(ctx context.Context) error { return p.store.Finish(ctx, m.ID) }); err != nil {
		return p.release(ctx, d, err)
	}
	return p.acknowledge(ctx, d)
}

func (p processor) retryStore(ctx context.Context, f func(context.Context) error) error {
	return retry(ctx, p.retryTimeout, p.log, f)
}

var (
	errPanic = errors.New("work panicked")
	errStuck = fmt.Errorf("work did not return within %s after its context had ended", stopPatience)
)

// runWork returns work's error. It does not wait for ever for work that ignores the
// end of its context.
func (p processor) runWork(ctx context.Context, m contract.Message) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.workTimeout, fmt.Errorf("took longer than %s", p.workTimeout))
	defer cancel()
	returned := make(chan error, 1)
	go func() {
		defer func() {
			if value := recover(); value != nil {
				p.log.ErrorContext(ctx, "work panicked", "reason", fmt.Sprint(value), "stack", string(debug.Stack()))
				returned <- fmt.Errorf("%w: %v", errPanic, value)
			}
		}()
		returned <- p.work(ctx, m)
	}()
	stuck := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopPatience, func() { close(stuck) }) })()
	select {
	case err := <-returned:
		if err == nil || ctx.Err() == nil || errors.Is(err, errPanic) {
			return err // nil also when it was done just in time
		}
		return context.Cause(ctx)
	case <-stuck:
		return fmt.Errorf("%w: %w", context.Cause(ctx), errStuck)
	}
}

// permanentError is an error of work that trying again would not mend.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// permanent marks an error of work: the message becomes a dead letter at once.
func permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

// fail gives the message its next attempt, or gives it up after the last one.
func (p processor) fail(ctx context.Context, d delivery, id string, reason error) outcome {
	status, settle := records.Retrying, p.retryMessage
	if _, forGood := errors.AsType[permanentError](reason); forGood || d.LastAttempt() {
		status, settle = records.Failed, p.deadLetter
	}
	if err := p.retryStore(ctx, func(ctx context.Context) error { return p.store.Fail(ctx, id, p.job, status, reason.Error()) }); err != nil {
		return p.release(ctx, d, fmt.Errorf("%w, after the work had failed: %w", err, reason))
	}
	o := settle(ctx, d, reason)
	if errors.Is(reason, errPanic) || errors.Is(reason, errStuck) {
		return crashed
	}
	return o
}

func (p processor) acknowledge(ctx context.Context, d delivery) outcome {
	if err := d.Ack(); err != nil {
		// there is no connection, and RabbitMQ takes the message back by itself
		return p.end(ctx, released, fmt.Errorf("acknowledge: %w", err))
	}
	p.log.InfoContext(ctx, "done")
	return done
}

func (p processor) retryMessage(ctx context.Context, d delivery, reason error) outcome {
	_ = d.Retry() // as in release
	return p.end(ctx, retried, reason)
}

// release lets another worker have the message at once.
func (p processor) release(ctx context.Context, d delivery, reason error) outcome {
	_ = d.Release() // without a connection RabbitMQ takes the message back by itself
	return p.end(ctx, released, reason)
}

// deadLetter works even when ctx has ended: such a message is not tried again only
// because its first Job was told to stop.
func (p processor) deadLetter(ctx context.Context, d delivery, reason error) outcome {
	if err := d.DeadLetter(context.WithoutCancel(ctx), reason.Error(), p.job); err != nil {
		_ = d.Retry() // counted and delayed, or its Jobs would follow each other without a pause
		return p.end(ctx, crashed, fmt.Errorf("%w, for a message that failed: %w", err, reason))
	}
	return p.end(ctx, deadLettered, reason)
}

func (p processor) end(ctx context.Context, o outcome, reason error) outcome {
	p.log.ErrorContext(ctx, "the message is not done", "outcome", string(o), "reason", reason.Error())
	return o
}
