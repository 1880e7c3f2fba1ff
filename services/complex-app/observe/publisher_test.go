package observe_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"keda-p2/services/complex-app/observe"
	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
)

// publisher runs an observed publisher, until the test ends.
func publisher(t *testing.T, c queue.Config, r *prometheus.Registry, provider trace.TracerProvider) *observe.Publisher {
	t.Helper()
	p := queue.NewPublisher(c, t.Name(), contracttest.Patience, slog.New(slog.DiscardHandler))
	observed := observe.NewPublisher(p, c.Queue, r, provider)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	require.Eventually(t, func() bool { return p.Ready() == nil }, contracttest.Patience, contracttest.Tick)
	return observed
}

func message(id string) contract.Message {
	return contract.Message{ID: id, Event: contract.Event{Name: "a"}, SentAt: time.Now()}
}

func TestPublishing(t *testing.T) {
	t.Parallel()
	c, registry := contracttest.RabbitMQ(t), prometheus.NewRegistry()
	provider, spans := recorded()
	p := publisher(t, c, registry, provider)
	require.NoError(t, p.Publish(t.Context(), message("id-1")))

	// the queue is deleted: the message comes back, and the publisher connects again
	_, err := contracttest.Channel(t, c).QueueDelete(c.Queue, false, false, false)
	require.NoError(t, err)
	require.ErrorIs(t, p.Publish(t.Context(), message("id-2")), queue.ErrUnavailable)
	require.Eventually(t, func() bool { return strings.Contains(shown(registry), "keda_p2_rabbitmq_connects_total 2\n") }, contracttest.Patience, contracttest.Tick)
	require.NoError(t, p.Publish(t.Context(), message("id-3")))

	got := shown(registry)
	labels := `messaging_destination_name="` + c.Queue + `",messaging_operation_name="publish",messaging_system="rabbitmq"`
	for _, line := range []string{
		`messaging_client_operation_duration_seconds_count{error_type="",` + labels + `} 2`,
		`messaging_client_operation_duration_seconds_count{error_type="unavailable",` + labels + `} 1`,
		`keda_p2_publish_in_flight 0`,
		`keda_p2_publish_returns_total 1`,
		`keda_p2_rabbitmq_connects_total 2`,
	} {
		require.Contains(t, got, line+"\n")
	}

	d, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	m, err := d.Message()
	require.NoError(t, err)
	require.Equal(t, "id-3", m.ID)
	require.Len(t, spans(), 3)
	last := spans()[2]
	_, attributes := named(t, spans()[2:], "send "+c.Queue)
	require.Equal(t, trace.SpanKindProducer, last.SpanKind)
	require.Equal(t, "id-3", attributes["messaging.message.id"])
	require.Equal(t, "rabbitmq", attributes["messaging.system"])
	require.Equal(t, "00-"+last.SpanContext.TraceID().String()+"-"+last.SpanContext.SpanID().String()+"-01", m.Trace["traceparent"])
	require.Equal(t, codes.Error, spans()[1].Status.Code)
}

func TestPublishingWithoutTraces(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	require.NoError(t, publisher(t, c, prometheus.NewRegistry(), noop.NewTracerProvider()).Publish(t.Context(), message("id")))
	d, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	m, err := d.Message()
	require.NoError(t, err)
	require.Empty(t, m.Trace)
}
