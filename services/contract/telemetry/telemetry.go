// Package telemetry is what both services tell about themselves: lines of the
// log, and spans of traces that cross the queue, which are sent with OpenTelemetry's
// protocol (OTLP over HTTP) when OTEL_EXPORTER_OTLP_ENDPOINT says where to.
package telemetry

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// flushTimeout bounds how long a process outlives its work to deliver its spans.
const flushTimeout = 2 * time.Second

// Tracing makes spans. A nil one is tracing that is off: its methods may be called
// and do nothing.
type Tracing struct {
	tracer   trace.Tracer
	provider *sdktrace.TracerProvider
}

// Open reads OpenTelemetry's own variables through getenv, and returns nil unless
// they name an endpoint. No mistake in them is an error: a program does its work
// without traces, and the log says why there are none.
func Open(getenv func(string) string, service, version string, log *slog.Logger) *Tracing {
	x, err := newExporter(getenv, log)
	if err != nil {
		log.Warn("no traces: the variables OTEL_… are not usable", "reason", err.Error())
	}
	if x == nil {
		return nil
	}
	// the variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
	about, err := resource.New(context.Background(),
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		log.Warn("OTEL_RESOURCE_ATTRIBUTES is not used", "reason", err.Error())
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(x), sdktrace.WithResource(about), sdktrace.WithIDGenerator(ids{}))
	return &Tracing{tracer: provider.Tracer("keda-p2"), provider: provider}
}

// Close delivers the spans that have ended, for at most two seconds. Those that
// nobody takes by then are lost.
func (t *Tracing) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // what is wrong, the exporter has said
}

// Start begins a span under the one in ctx. The returned function ends it, with
// an error when it is not nil.
func (t *Tracing) Start(ctx context.Context, name string, kind trace.SpanKind, o ...trace.SpanStartOption) (context.Context, func(error)) {
	if t == nil {
		return ctx, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, name, append(o, trace.WithSpanKind(kind))...)
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
			span.SetAttributes(attribute.String("error.type", errorType(err)))
		}
		span.End()
	}
}

// Note adds a span that is over already.
func (t *Tracing) Note(ctx context.Context, name string, kind trace.SpanKind, from, to time.Time, o ...trace.SpanStartOption) {
	if t == nil {
		return
	}
	_, span := t.tracer.Start(ctx, name, append(o, trace.WithSpanKind(kind), trace.WithTimestamp(from))...)
	span.End(trace.WithTimestamp(to))
}

// errorType names the innermost error's Go type, as the semantic conventions
// suggest: its text may have any number of values.
func errorType(err error) string {
	for {
		unwrapped, ok := err.(interface{ Unwrap() error })
		if !ok || unwrapped.Unwrap() == nil {
			return strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
		}
		err = unwrapped.Unwrap()
	}
}

// Headers returns the span in ctx as the W3C's headers traceparent and
// tracestate, or nil when there is none.
func Headers(ctx context.Context) map[string]string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	if len(carrier) == 0 {
		return nil
	}
	return carrier
}

// WithHeaders returns ctx under the span that the headers name. Without one in
// them, or with a broken one, it is ctx.
func WithHeaders(ctx context.Context, header func(name string) string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, getter(header))
}

// getter is a propagation.TextMapCarrier that is only read.
type getter func(string) string

func (g getter) Get(name string) string { return g(name) }
func (getter) Set(string, string)       {}
func (getter) Keys() []string           { return nil }

// StartAttempt begins the span of one delivery of a message, under the span in
// ctx that has sent it. A later attempt is linked to the first. A queue adds
// nothing to a message that it delivers again, and a Job that was killed tells
// nothing: so an attempt's span id is no random number but made from the sender's
// span and the attempt's number, and the first one's is known to all.
func (t *Tracing) StartAttempt(ctx context.Context, name string, attempt int, o ...trace.SpanStartOption) (context.Context, func(error)) {
	sender := trace.SpanContextFromContext(ctx)
	if t == nil || !sender.IsValid() {
		return t.Start(ctx, name, trace.SpanKindConsumer, o...)
	}
	if attempt > 1 {
		first := sender.WithSpanID(attemptID(sender, 1))
		o = append(o, trace.WithLinks(trace.Link{SpanContext: first, Attributes: []attribute.KeyValue{attribute.String("keda_p2.link", "first attempt")}}))
	}
	started, end := t.Start(context.WithValue(ctx, spanID{}, attemptID(sender, attempt)), name, trace.SpanKindConsumer, o...)
	// not started itself, lest the spans below take this one's id
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(started)), end
}

func attemptID(sender trace.SpanContext, attempt int) trace.SpanID {
	traceID, id := sender.TraceID(), sender.SpanID()
	hash := sha256.Sum256(binary.BigEndian.AppendUint64(append(traceID[:], id[:]...), uint64(attempt)))
	return trace.SpanID(hash[:8])
}
