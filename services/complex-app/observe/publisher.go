package observe

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
)

// Publisher is a queue.Publisher with metrics and traces around it.
type Publisher struct {
	*queue.Publisher
	queue    string
	tracer   trace.Tracer
	duration *prometheus.HistogramVec // by error_type
	inFlight prometheus.Gauge
}

// NewPublisher returns p with metrics and traces around it.
func NewPublisher(p *queue.Publisher, queueName string, registry prometheus.Registerer, provider trace.TracerProvider) *Publisher {
	metrics := promauto.With(registry)
	count := func(name, help string, f func() uint64) {
		metrics.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(f()) })
	}
	count("keda_p2_rabbitmq_connects_total", "Connections to RabbitMQ that the publisher has made: all but the first are reconnects.", p.Connects)
	count("keda_p2_publish_returns_total", "Messages that RabbitMQ returned because there was no queue for them.", p.Returns)
	o := &Publisher{
		Publisher: p, queue: queueName, tracer: provider.Tracer("keda-p2/complex-app"),
		duration: metrics.NewHistogramVec(prometheus.HistogramOpts{
			Name: "messaging_client_operation_duration_seconds",
			Help: "How long it took to publish a message, until RabbitMQ had confirmed it.",
			ConstLabels: prometheus.Labels{
				"messaging_operation_name": "publish", "messaging_system": "rabbitmq", "messaging_destination_name": queueName,
			},
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"error_type"}),
		inFlight: metrics.NewGauge(prometheus.GaugeOpts{
			Name: "keda_p2_publish_in_flight", Help: "Messages that are published and not confirmed yet.",
		}),
	}
	o.duration.WithLabelValues("") // as in HTTP
	return o
}

// Publish is queue.Publisher's, with the context of its span in the message.
func (o *Publisher) Publish(ctx context.Context, m contract.Message) error {
	ctx, span := o.tracer.Start(ctx, "send "+o.queue, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("messaging.system", "rabbitmq"),
		attribute.String("messaging.operation.name", "send"),
		attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.destination.name", o.queue),
		attribute.String("messaging.message.id", m.ID),
	))
	defer span.End()
	headers := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, headers)
	m.Trace = headers

	began := time.Now()
	o.inFlight.Inc()
	err := o.Publisher.Publish(ctx, m)
	o.inFlight.Dec()
	record(o.duration.WithLabelValues(errorType(err)), began, span)
	if err != nil {
		span.SetAttributes(attribute.String("error.type", errorType(err)))
		span.SetStatus(codes.Error, err.Error())
	}
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
