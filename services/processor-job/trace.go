package main

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/contract"
	"keda-p2/services/contract/records"
)

// tracer puts spans around what a processor does, under the span that sent the
// message: the trace of POST /send goes on here. The processor knows nothing of it.
type tracer struct {
	trace.Tracer
	queue, collection string
}

// traced returns p.process with spans around it and its steps.
func traced(p processor, provider trace.TracerProvider, queue, collection string) func(context.Context, delivery, time.Time) outcome {
	t := tracer{provider.Tracer("keda-p2/processor-job"), queue, collection}
	work := p.work
	p.work = func(ctx context.Context, m contract.Message) error {
		return t.step(ctx, "work", trace.SpanKindInternal, func(ctx context.Context) error { return work(ctx, m) })
	}
	p.store = tracedStore{p.store, t}
	return func(ctx context.Context, d delivery, began time.Time) outcome {
		m, _ := d.Message() // of one that cannot be decoded, the trace is there all the same
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(m.Trace))
		ctx, span := t.Start(ctx, "process "+queue, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(began),
			t.messaging("process", "process", attribute.String("messaging.message.id", m.ID),
				attribute.Int("keda_p2.attempt", d.Attempt()), attribute.String("k8s.pod.name", p.job)))
		defer span.End()
		_, receive := t.Start(ctx, "receive "+queue, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(began), t.messaging("receive", "receive"))
		receive.End()
		o := p.process(ctx, tracedDelivery{d, ctx, t}, began)
		span.SetAttributes(attribute.String("keda_p2.outcome", string(o)))
		if o != done {
			span.SetStatus(codes.Error, string(o))
		}
		return o
	}
}

func (t tracer) messaging(operation, kind string, more ...attribute.KeyValue) trace.SpanStartEventOption {
	return trace.WithAttributes(append(more,
		attribute.String("messaging.system", "rabbitmq"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.operation.type", kind),
		attribute.String("messaging.destination.name", t.queue))...)
}

// step runs f in a span.
func (t tracer) step(ctx context.Context, name string, kind trace.SpanKind, f func(context.Context) error, o ...trace.SpanStartOption) error {
	ctx, span := t.Start(ctx, name, append(o, trace.WithSpanKind(kind))...)
	defer span.End()
	err := f(ctx)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		span.SetAttributes(attribute.String("error.type", fmt.Sprintf("%T", err)))
	}
	return err
}

type tracedStore struct {
	store
	t tracer
}

func (s tracedStore) Begin(ctx context.Context, m contract.Message, run records.Run) error {
	return s.update(ctx, "store record", func(ctx context.Context) error { return s.store.Begin(ctx, m, run) })
}

func (s tracedStore) Finish(ctx context.Context, id string) error {
	return s.update(ctx, "finish record", func(ctx context.Context) error { return s.store.Finish(ctx, id) })
}

func (s tracedStore) Fail(ctx context.Context, id, job string, status records.Status, reason string) error {
	return s.update(ctx, "fail record", func(ctx context.Context) error { return s.store.Fail(ctx, id, job, status, reason) })
}

func (s tracedStore) update(ctx context.Context, summary string, f func(context.Context) error) error {
	return s.t.step(ctx, summary, trace.SpanKindClient, f, trace.WithAttributes(
		attribute.String("db.system.name", "mongodb"),
		attribute.String("db.operation.name", "update"),
		attribute.String("db.collection.name", s.t.collection),
		attribute.String("db.query.summary", summary)))
}

type tracedDelivery struct {
	delivery
	ctx context.Context // of the span around all steps
	t   tracer
}

func (d tracedDelivery) Ack() error     { return d.settle("ack", d.delivery.Ack) }
func (d tracedDelivery) Retry() error   { return d.settle("reject", d.delivery.Retry) }
func (d tracedDelivery) Release() error { return d.settle("nack", d.delivery.Release) }

func (d tracedDelivery) DeadLetter(ctx context.Context, reason, job string) error {
	return d.settle("dead-letter", func() error { return d.delivery.DeadLetter(ctx, reason, job) })
}

func (d tracedDelivery) settle(operation string, f func() error) error {
	return d.t.step(d.ctx, operation+" "+d.t.queue, trace.SpanKindClient, func(context.Context) error { return f() }, d.t.messaging(operation, "settle"))
}
