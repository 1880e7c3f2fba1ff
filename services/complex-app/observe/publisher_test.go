package observe_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/complex-app/observe"
	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/telemetry"
	"keda-p2/services/telemetry/telemetrytest"
)

// publisher runs an observed publisher, until the test ends.
func publisher(t *testing.T, c queue.Config, r *metrics.Registry, tracing *telemetry.Tracing) *observe.Publisher {
	t.Helper()
	p := queue.NewPublisher(c, t.Name(), contracttest.Patience, slog.New(slog.DiscardHandler))
	observed := observe.NewPublisher(p, c.Queue, r, tracing)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	require.Eventually(t, func() bool { return p.Ready() == nil }, contracttest.Patience, contracttest.Tick)
	return observed
}

// publish sends a message and waits for its confirm.
func publish(t *testing.T, p *observe.Publisher, id string) error {
	t.Helper()
	confirmed, err := p.Send(t.Context(), message(id))
	if err != nil {
		return err
	}
	return confirmed()
}

func message(id string) contract.Message {
	return contract.Message{ID: id, Event: contract.Event{Name: "a"}, SentAt: time.Now()}
}

func TestPublishing(t *testing.T) {
	t.Parallel()
	c, registry := contracttest.RabbitMQ(t), &metrics.Registry{}
	tracing, collector := tracing(t)
	p := publisher(t, c, registry, tracing)
	require.NoError(t, publish(t, p, "id-1"))

	// the queue is deleted: the message comes back, and the publisher connects again
	_, err := contracttest.Channel(t, c).QueueDelete(c.Queue, false, false, false)
	require.NoError(t, err)
	require.ErrorIs(t, publish(t, p, "id-2"), queue.ErrUnavailable)
	require.Eventually(t, func() bool { return strings.Contains(shown(registry), "keda_p2_rabbitmq_connects_total 2\n") }, contracttest.Patience, contracttest.Tick)
	require.NoError(t, publish(t, p, "id-3"))

	got := shown(registry)
	labels := `messaging_system="rabbitmq",messaging_destination_name="` + c.Queue + `"`
	for _, line := range []string{
		`messaging_client_operation_duration_seconds_count{messaging_operation_name="publish",` + labels + `} 3`,
		`messaging_client_operation_duration_seconds_count{messaging_operation_name="confirm",` + labels + `} 2`,
		`messaging_client_operation_duration_seconds_count{messaging_operation_name="confirm",` + labels + `,error_type="unavailable"} 1`,
		`keda_p2_publish_in_flight 0`,
		`keda_p2_publish_returns_total 1`,
		`keda_p2_rabbitmq_connects_total 2`,
	} {
		require.Contains(t, got, line+"\n")
	}

	d, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.Equal(t, "id-3", d.ID())
	tracing.Close()
	var sends []telemetrytest.Span
	for _, s := range collector.Spans() {
		if s.Name == "send "+c.Queue {
			sends = append(sends, s)
		}
	}
	require.Len(t, sends, 3)
	require.Equal(t, otlp.Span_SPAN_KIND_PRODUCER, sends[2].Kind)
	require.Equal(t, "id-3", sends[2].Attribute("messaging.message.id"))
	require.Equal(t, "rabbitmq", sends[2].Attribute("messaging.system"))
	require.Equal(t, "00-"+telemetrytest.Hex(sends[2].TraceId)+"-"+telemetrytest.Hex(sends[2].SpanId)+"-01", d.Header("traceparent"))
	require.Equal(t, otlp.Status_STATUS_CODE_ERROR, sends[1].Status.Code)
}

func TestPublishingWithoutTracing(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	require.NoError(t, publish(t, publisher(t, c, &metrics.Registry{}, nil), "id"))
	d, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.Empty(t, d.Header("traceparent"))
}
