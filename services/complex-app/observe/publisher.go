package observe

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/telemetry"
)

// Publisher observes a queue.Publisher: how long it took to send a message and
// then until its confirm, and what went wrong.
type Publisher struct {
	*queue.Publisher
	queue    string
	tracing  *telemetry.Tracing
	duration metrics.Histogram
	inFlight metrics.Gauge
}

// written is the key under which Publish's context has the time at which the
// message was written.
type written struct{}

// NewPublisher puts itself around p, whose Run must not have been called yet.
func NewPublisher(p *queue.Publisher, queueName string, r *metrics.Registry, t *telemetry.Tracing) *Publisher {
	o := &Publisher{Publisher: p, queue: queueName, tracing: t,
		duration: r.Histogram("messaging_client_operation_duration_seconds",
			"How long it took to publish a message, and from then on until RabbitMQ had confirmed it.",
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
			"messaging_operation_name", "messaging_system", "messaging_destination_name", "error_type"),
		inFlight: r.Gauge("keda_p2_publish_in_flight", "Messages that are published and not confirmed yet."),
	}
	o.inFlight.Add(0)
	o.duration.Expect("publish", "rabbitmq", queueName, "")
	o.duration.Expect("confirm", "rabbitmq", queueName, "")
	connects := r.Counter("keda_p2_rabbitmq_connects_total", "Connections to RabbitMQ that the publisher has made: all but the first are reconnects.")
	returns := r.Counter("keda_p2_publish_returns_total", "Messages that RabbitMQ gave back because there was no queue for them.")
	p.Hooks.Connected = func() { connects.Add(1) }
	p.Hooks.Returned = func() { returns.Add(1) }
	p.Hooks.Written = func(ctx context.Context) {
		if at, ok := ctx.Value(written{}).(*time.Time); ok {
			*at = time.Now()
		}
	}
	return o
}

// Publish publishes, with the span's headers on the message.
func (o *Publisher) Publish(ctx context.Context, m contract.Message) error {
	ctx, end := o.tracing.Start(ctx, "send "+o.queue, trace.SpanKindProducer, trace.WithAttributes(
		attribute.String("messaging.system", "rabbitmq"),
		attribute.String("messaging.operation.name", "send"),
		attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.destination.name", o.queue),
		attribute.String("messaging.message.id", m.ID),
	))
	if o.tracing != nil {
		m.Trace = telemetry.Headers(ctx)
	}
	began, sent := time.Now(), time.Time{}
	o.inFlight.Add(1)
	err := o.Publisher.Publish(context.WithValue(ctx, written{}, &sent), m)
	o.inFlight.Add(-1)

	ended, failure := time.Now(), errorType(err)
	publish := func(until time.Time, failure string) {
		o.duration.Observe(until.Sub(began).Seconds(), "publish", "rabbitmq", o.queue, failure)
	}
	if sent.IsZero() {
		publish(ended, failure)
	} else {
		publish(sent, "")
		o.duration.Observe(ended.Sub(sent).Seconds(), "confirm", "rabbitmq", o.queue, failure)
		o.tracing.Note(ctx, "confirm", trace.SpanKindInternal, sent, ended)
	}
	end(err)
	return err
}

func errorType(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, queue.ErrUnconfirmed):
		return "unconfirmed"
	case errors.Is(err, queue.ErrUnavailable):
		return "unavailable"
	default:
		return "_OTHER"
	}
}
