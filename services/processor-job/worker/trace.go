package worker

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/contract/telemetry"
)

// Tracer makes the spans of a Job, under the one that has sent the message: the
// trace of POST /send goes on here. With its zero value it makes none.
type Tracer struct {
	Tracing    *telemetry.Tracing
	Job        string // the pod's name
	Queue      string // its name
	Collection string // MongoDB's

	connected time.Time // of a Job that has just started
}

// Connected notes that the start is over, and the wait for a message begins.
func (t *Tracer) Connected() { t.connected = time.Now() }

// attempt begins the span of one delivery, from when the Job began to look for it.
// What was before the claim is known only now: before, there was no trace.
func (t *Tracer) attempt(ctx context.Context, d *queue.Delivery, run records.Run) (context.Context, func(error)) {
	if t == nil || t.Tracing == nil {
		return ctx, func(error) {}
	}
	ctx = telemetry.WithHeaders(ctx, d.Header)
	if sent := d.SentAt(); run.Attempt == 1 && !sent.IsZero() && sent.Before(run.ClaimedAt) {
		// nobody has noted since when a message waits that was given back
		t.Tracing.Note(ctx, "wait in "+t.Queue, trace.SpanKindInternal, sent, run.ClaimedAt)
	}
	message := t.messaging("process", "process", attribute.String("messaging.message.id", d.ID()),
		attribute.Int("keda_p2.attempt", run.Attempt), attribute.String("k8s.pod.name", t.Job))
	ctx, end := t.Tracing.StartAttempt(ctx, "process "+t.Queue, run.Attempt, message, trace.WithTimestamp(run.StartedAt))
	waiting := run.StartedAt
	if t.connected.After(run.StartedAt) {
		t.Tracing.Note(ctx, "start", trace.SpanKindInternal, run.StartedAt, t.connected)
		waiting = t.connected
	}
	t.Tracing.Note(ctx, "receive "+t.Queue, trace.SpanKindClient, waiting, run.ClaimedAt, t.messaging("receive", "receive"))
	return ctx, end
}

func (t *Tracer) messaging(operation, kind string, more ...attribute.KeyValue) trace.SpanStartOption {
	return trace.WithAttributes(append(more,
		attribute.String("messaging.system", "rabbitmq"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.operation.type", kind),
		attribute.String("messaging.destination.name", t.Queue))...)
}

// step runs f in a span of its own.
func (t *Tracer) step(ctx context.Context, name string, kind trace.SpanKind, f func(context.Context) error, o ...trace.SpanStartOption) error {
	if t == nil {
		return f(ctx)
	}
	ctx, end := t.Tracing.Start(ctx, name, kind, o...)
	err := f(ctx)
	end(err)
	return err
}

// settle tells the broker what becomes of the message: ack, or nack.
func (t *Tracer) settle(ctx context.Context, operation string, f func() error) error {
	if t == nil {
		return f()
	}
	return t.step(ctx, operation+" "+t.Queue, trace.SpanKindClient, func(context.Context) error { return f() }, t.messaging(operation, "settle"))
}

// Store returns s with a span around each call.
func (t *Tracer) Store(s Store) Store { return tracedStore{s, t} }

type tracedStore struct {
	Store
	t *Tracer
}

func (s tracedStore) Begin(ctx context.Context, m contract.Message, run records.Run) error {
	return s.call(ctx, "store record", func(ctx context.Context) error { return s.Store.Begin(ctx, m, run) })
}

func (s tracedStore) Finish(ctx context.Context, id string) error {
	return s.call(ctx, "finish record", func(ctx context.Context) error { return s.Store.Finish(ctx, id) })
}

func (s tracedStore) call(ctx context.Context, summary string, f func(context.Context) error) error {
	return s.t.step(ctx, summary, trace.SpanKindClient, f, trace.WithAttributes(
		attribute.String("db.system.name", "mongodb"),
		attribute.String("db.operation.name", "update"),
		attribute.String("db.collection.name", s.t.Collection),
		attribute.String("db.query.summary", summary)))
}

// Failure is the error of one message, with what the log says of that.
type Failure struct {
	error
	ctx context.Context
	log *slog.Logger
}

func (f *Failure) Unwrap() error { return f.error }

// Report logs an error, and with a Failure its message's id, attempt and span.
func Report(log *slog.Logger, err error) {
	ctx := context.Background()
	if f, ok := err.(*Failure); ok { //nolint:errorlint // nothing wraps it
		ctx, log = f.ctx, f.log
	}
	log.ErrorContext(ctx, "failed", "reason", err.Error())
}
