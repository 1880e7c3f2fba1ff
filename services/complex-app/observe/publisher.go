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
	publisher *queue.Publisher
	queue     string
	tracing   *telemetry.Tracing
	duration  metrics.Histogram
	inFlight  metrics.Gauge
}

// NewPublisher puts itself around p, whose Run must not have been called yet.
func NewPublisher(p *queue.Publisher, queueName string, r *metrics.Registry, t *telemetry.Tracing) *Publisher {
	o := &Publisher{publisher: p, queue: queueName, tracing: t,
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
	return o
}

// Ready is queue.Publisher's.
func (o *Publisher) Ready() error { return o.publisher.Ready() }

// Send is the first half of queue.Publisher's Publish, with the span's headers on
// the message. The second half is confirmed, which must be called once.
func (o *Publisher) Send(ctx context.Context, m contract.Message) (confirmed func() error, err error) {
	end := func(error) {}
	if o.tracing != nil {
		ctx, end = o.tracing.Start(ctx, "send "+o.queue, trace.SpanKindProducer, trace.WithAttributes(
			attribute.String("messaging.system", "rabbitmq"),
			attribute.String("messaging.operation.name", "send"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.destination.name", o.queue),
			attribute.String("messaging.message.id", m.ID),
		))
		m.Trace = telemetry.Headers(ctx)
	}
	began := time.Now()
	sent, err := o.publisher.Send(m)
	written := time.Now()
	o.observe("publish", began, written, err)
	if err != nil {
		end(err)
		return nil, err
	}
	o.inFlight.Add(1)
	return func() error {
		err := sent.Wait(ctx)
		confirmed := time.Now()
		o.inFlight.Add(-1)
		o.observe("confirm", written, confirmed, err)
		o.tracing.Note(ctx, "confirm", trace.SpanKindInternal, written, confirmed)
		end(err)
		return err
	}, nil
}

func (o *Publisher) observe(operation string, from, until time.Time, err error) {
	o.duration.Observe(until.Sub(from).Seconds(), operation, "rabbitmq", o.queue, errorType(err))
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
