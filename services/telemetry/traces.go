package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// stopTimeout is how long the end of a program may wait for the collector.
const stopTimeout = 2 * time.Second

// Traces is a provider of tracers, and how to stop it.
type Traces struct {
	trace.TracerProvider
	// Stop sends the spans that have ended and returns after at most 2 s. What the
	// collector has not taken by then is lost.
	Stop func()
}

// StartTraces returns a provider that sends its spans to a collector, with OTLP over
// HTTP or gRPC. It is configured by OpenTelemetry's own variables, OTEL_…. If they name
// no endpoint, turn traces off or cannot be used, the provider does nothing. A mistake
// in them is logged and is never an error: the program works without traces.
//
// Call it once in a process: OpenTelemetry's logger and error handler are global.
func StartTraces(ctx context.Context, service, version string, log *slog.Logger) Traces {
	off := Traces{noop.NewTracerProvider(), func() {}}
	if variable("ENDPOINT") == "" || os.Getenv("OTEL_TRACES_EXPORTER") == "none" || strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return off
	}
	otel.SetLogger(logr.FromSlogHandler(withoutValues{log.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry", "reason", reason(err)) }))
	x, err := newExporter(ctx, log)
	if err != nil {
		log.Warn("no traces: the variables OTEL_… cannot be used", "reason", reason(err))
		return off
	}
	// The last option wins, so OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES do. The
	// error is dropped because WithResource reads them again and reports it.
	about, _ := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version)),
		resource.WithFromEnv())
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&outages{SpanExporter: x, log: log}), sdktrace.WithResource(about))
	return Traces{p, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			log.Warn("the last traces are lost", "reason", reason(err))
		}
	}}
}

// variable reads one of OTLP's variables: the one for traces wins over the one for all
// signals.
func variable(name string) string {
	return cmp.Or(strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_"+name)), strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_"+name)))
}

// newExporter checks what the library does not: with an endpoint that it cannot parse
// it sends to localhost, and an unknown protocol is HTTP to it. It reads all other
// variables itself. There is no retry, because a Job must not wait for a collector.
func newExporter(ctx context.Context, log *slog.Logger) (sdktrace.SpanExporter, error) {
	endpoint, err := url.Parse(variable("ENDPOINT"))
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "http" && endpoint.Scheme != "https" {
		return nil, errors.New("OTEL_EXPORTER_OTLP_ENDPOINT is not a URL such as http://collector:4318")
	}
	switch protocol := variable("PROTOCOL"); protocol {
	case "grpc":
		// without the URL's path, which is not part of an address for gRPC
		return otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(endpoint.Host), otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}))
	case "", "http/protobuf", "http/json":
		if protocol == "" && endpoint.Port() == "4317" {
			log.Warn("port 4317 in OTEL_EXPORTER_OTLP_ENDPOINT is usually gRPC's, but traces are sent over HTTP: set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use port 4318")
		}
		return otlptracehttp.New(ctx, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: false}))
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q, but must be grpc, http/protobuf or http/json", protocol)
	}
}

// outages logs the beginning and the end of an outage of the collector, instead of an
// error for every batch.
type outages struct {
	sdktrace.SpanExporter
	log     *slog.Logger
	failing bool // needs no lock: batches are exported one after the other
}

func (x *outages) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := x.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !x.failing:
		x.log.Warn("traces are not delivered", "reason", reason(err))
	case err == nil && x.failing:
		x.log.Info("traces are delivered again")
	}
	x.failing = err != nil
	return nil // it is logged
}

// withoutValues logs what the library says about variables that it cannot read, without
// the values: a header or a URL may hold a key.
type withoutValues struct{ slog.Handler }

func (h withoutValues) Handle(ctx context.Context, r slog.Record) error {
	line := slog.NewRecord(r.Time, r.Level, "OpenTelemetry: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok {
			line.AddAttrs(slog.String("reason", reason(err)))
		}
		return true
	})
	return h.Handler.Handle(ctx, line)
}

// secrets are parts of an error's text in which a key may be: a URL, and the body of an
// answer, which may repeat a URL or a header (body with HTTP, data with gRPC).
var secrets = regexp.MustCompile(`(?s) to https?://[^\s"]*[^\s":]|:? \(?body: .*|\ndata: .*`)

// reason returns an error's text without secrets.
func reason(err error) string {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		if failed.Op == "parse" {
			return "not a URL"
		}
		err = failed.Err // all but the URL
	}
	return secrets.ReplaceAllString(err.Error(), "")
}
