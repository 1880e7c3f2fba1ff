package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"keda-p2/services/contract/telemetry"
	"keda-p2/services/contract/telemetry/telemetrytest"
)

func environ(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestSpansArriveOverTheRealProtocol(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	collector := telemetrytest.Start(t)
	tracing := telemetry.Open(environ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL+"/", "OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%3Db, other=c"), "a service", "1.2", slog.New(slog.DiscardHandler))
	ctx, end := tracing.Start(t.Context(), "parent", trace.SpanKindProducer)
	began := time.Now().Add(-time.Hour)
	tracing.Note(ctx, "over already", trace.SpanKindInternal, began, began.Add(time.Minute), trace.WithAttributes(
		attribute.String("text", "имя \xff"), attribute.Int("number", -7), attribute.Bool("yes", true), attribute.Float64("half", 0.5), attribute.StringSlice("list", []string{"a"})))
	trace.SpanFromContext(ctx).AddEvent("something")
	end(fmt.Errorf("it failed: %w", &net.OpError{Op: "dial", Err: errors.New("no")}))
	tracing.Close()

	require.Equal(t, "a=b", collector.Headers().Get("api-key"))
	require.Equal(t, "c", collector.Headers().Get("other"))
	spans := collector.Spans()
	require.Len(t, spans, 2)
	parent, over := telemetrytest.Named(t, spans, "parent"), telemetrytest.Named(t, spans, "over already")
	require.Equal(t, "a service", parent.Resource["service.name"])
	require.Equal(t, "1.2", parent.Resource["service.version"])
	require.Equal(t, "test", parent.Resource["deployment.environment.name"])
	require.Equal(t, "opentelemetry", parent.Resource["telemetry.sdk.name"])
	require.Equal(t, otlp.Span_SPAN_KIND_PRODUCER, parent.Kind)
	require.Equal(t, otlp.Status_STATUS_CODE_ERROR, parent.Status.Code)
	require.Contains(t, parent.Status.Message, "it failed: dial")
	require.Equal(t, "errors.errorString", parent.Attribute("error.type"))
	require.Equal(t, "something", parent.Events[0].Name)
	require.Empty(t, parent.ParentSpanId)
	require.EqualValues(t, trace.FlagsSampled, parent.Flags)

	require.Equal(t, parent.TraceId, over.TraceId)
	require.Equal(t, parent.SpanId, over.ParentSpanId)
	require.Equal(t, otlp.Status_STATUS_CODE_UNSET, over.Status.Code)
	require.True(t, began.Equal(over.Start()))
	require.Equal(t, time.Minute, over.End().Sub(over.Start()))
	require.Equal(t, "имя \uFFFD", over.Attribute("text"))
	require.EqualValues(t, -7, over.Attributes[1].Value.GetIntValue())
	require.True(t, over.Attributes[2].Value.GetBoolValue())
	require.EqualValues(t, 0.5, over.Attributes[3].Value.GetDoubleValue())
}

// A redelivery knows the first attempt's span, although nobody has told it.
func TestALaterAttemptIsLinkedToTheFirst(t *testing.T) {
	t.Parallel()
	collector := telemetrytest.Start(t)
	open := func() *telemetry.Tracing {
		return telemetry.Open(environ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL), "s", "1", slog.New(slog.DiscardHandler))
	}
	sender := open()
	ctx, end := sender.Start(t.Context(), "sender", trace.SpanKindProducer)
	headers := telemetry.Headers(ctx)
	end(nil)
	sender.Close()
	require.Contains(t, headers["traceparent"], "-01")

	for _, attempt := range []int{1, 3} {
		job := open() // another process
		ctx := telemetry.WithHeaders(t.Context(), func(name string) string { return headers[name] })
		ctx, end := job.StartAttempt(ctx, fmt.Sprint("attempt ", attempt), attempt)
		_, child := job.Start(ctx, fmt.Sprint("work of ", attempt), trace.SpanKindInternal)
		child(nil)
		end(nil)
		job.Close()
	}
	spans := collector.Spans()
	from, first, third := telemetrytest.Named(t, spans, "sender"), telemetrytest.Named(t, spans, "attempt 1"), telemetrytest.Named(t, spans, "attempt 3")
	for _, s := range []telemetrytest.Span{first, third} {
		require.Equal(t, from.TraceId, s.TraceId)
		require.Equal(t, from.SpanId, s.ParentSpanId)
	}
	require.Empty(t, first.Links)
	require.Len(t, third.Links, 1)
	require.Equal(t, first.SpanId, third.Links[0].SpanId)
	require.Equal(t, first.TraceId, third.Links[0].TraceId)
	require.NotEqual(t, first.SpanId, third.SpanId)
	work := telemetrytest.Named(t, spans, "work of 1")
	require.Equal(t, first.SpanId, work.ParentSpanId)
	require.NotEqual(t, first.SpanId, work.SpanId)
}

func TestWithoutASenderAnAttemptBeginsATrace(t *testing.T) {
	t.Parallel()
	collector := telemetrytest.Start(t)
	tracing := telemetry.Open(environ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.URL+"/v1/traces"), "s", "1", slog.New(slog.DiscardHandler))
	ctx := telemetry.WithHeaders(t.Context(), func(string) string { return "not a traceparent" })
	_, end := tracing.StartAttempt(ctx, "attempt", 2)
	end(nil)
	tracing.Close()
	require.Empty(t, telemetrytest.Named(t, collector.Spans(), "attempt").ParentSpanId)
}

func TestTracingThatIsOff(t *testing.T) {
	t.Parallel()
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for name, c := range map[string]struct {
		variables []string
		warning   string
	}{
		"nothing set":       {},
		"disabled":          {variables: []string{endpoint, "http://c:4318", "OTEL_SDK_DISABLED", "TRUE"}},
		"other exporter":    {variables: []string{endpoint, "http://c:4318", "OTEL_TRACES_EXPORTER", "none"}},
		"another protocol":  {variables: []string{endpoint, "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, warning: "only http/protobuf"},
		"no URL":            {variables: []string{endpoint, "c:4318"}, warning: "is no URL"},
		"a password in it":  {variables: []string{endpoint, "ftp://u:secret@c:4318"}, warning: "is no URL"},
		"bad headers":       {variables: []string{endpoint, "http://c:4318", "OTEL_EXPORTER_OTLP_HEADERS", "a=secret%zz"}, warning: "URL-encoded"},
		"bad timeout":       {variables: []string{endpoint, "http://c:4318", "OTEL_EXPORTER_OTLP_TIMEOUT", "2s"}, warning: "milliseconds"},
		"no such authority": {variables: []string{endpoint, "https://c:4318", "OTEL_EXPORTER_OTLP_CERTIFICATE", "/nothing"}, warning: "CERTIFICATE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			tracing := telemetry.Open(environ(c.variables...), "s", "1", slog.New(slog.NewJSONHandler(&out, nil)))
			require.Nil(t, tracing)
			if c.warning == "" {
				require.Empty(t, out.String())
			} else {
				require.Contains(t, out.String(), c.warning)
			}
			require.NotContains(t, out.String(), "secret")

			// and may be used all the same
			ctx, end := tracing.StartAttempt(t.Context(), "a", 2)
			tracing.Note(ctx, "b", trace.SpanKindInternal, time.Now(), time.Now())
			end(nil)
			require.Nil(t, telemetry.Headers(ctx))
			tracing.Close()
		})
	}
}

// A collector that is away, or silent, costs one line and no more than two seconds.
func TestADeadCollector(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	for name, endpoint := range map[string]string{"refuses": "http://127.0.0.1:1", "silent": "http://key:secret@" + silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			tracing := telemetry.Open(environ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), "s", "1", slog.New(slog.NewJSONHandler(&out, nil)))
			_, end := tracing.Start(t.Context(), "a", trace.SpanKindInternal)
			end(nil)
			began := time.Now()
			tracing.Close()
			require.Less(t, time.Since(began), 4*time.Second)
			if name == "refuses" {
				require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
				require.Contains(t, out.String(), "connection refused")
			}
		})
	}
}

func TestHeadersOfNoSpan(t *testing.T) {
	t.Parallel()
	require.Nil(t, telemetry.Headers(context.Background()))
}
