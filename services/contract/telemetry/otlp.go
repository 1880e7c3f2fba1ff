package telemetry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protowire"
)

// exporter sends spans as OTLP over HTTP in protobuf, the encoding that every
// receiver takes. OpenTelemetry's own exporters, over HTTP and over gRPC alike,
// bring all of gRPC and of protobuf's reflection: they would make these programs of
// 11 MB larger by 6. This file is what they would do with them.
type exporter struct {
	url     string
	headers http.Header
	client  http.Client
	log     *slog.Logger
	failing atomic.Bool // so that an outage is two lines in the log
}

// newExporter returns nil when the variables name no endpoint, or turn traces off.
func newExporter(getenv func(string) string, log *slog.Logger) (*exporter, error) {
	// the variable for traces wins over that for all signals
	variable := func(name string) string {
		if value := getenv("OTEL_EXPORTER_OTLP_TRACES_" + name); value != "" {
			return value
		}
		return getenv("OTEL_EXPORTER_OTLP_" + name)
	}
	endpoint := variable("ENDPOINT")
	if endpoint == "" || getenv("OTEL_TRACES_EXPORTER") == "none" || strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return nil, nil
	}
	if p := variable("PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: only http/protobuf is spoken here, to port 4318 as a rule", p)
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("OTEL_EXPORTER_OTLP_ENDPOINT is no URL such as http://collector:4318")
	}
	if getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" { // which is used as it is
		u = u.JoinPath("v1", "traces")
	}
	x := &exporter{url: u.String(), headers: http.Header{}, log: log, client: http.Client{Timeout: 10 * time.Second}}
	for pair := range strings.SplitSeq(variable("HEADERS"), ",") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			value, err := url.PathUnescape(strings.TrimSpace(value))
			if err != nil {
				return nil, errors.New("OTEL_EXPORTER_OTLP_HEADERS has a value that is not URL-encoded")
			}
			x.headers.Set(strings.TrimSpace(key), value)
		}
	}
	x.headers.Set("Content-Type", "application/x-protobuf")
	if timeout := variable("TIMEOUT"); timeout != "" {
		ms, err := strconv.Atoi(timeout)
		if err != nil || ms <= 0 {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_TIMEOUT is %q, not a number of milliseconds", timeout)
		}
		x.client.Timeout = time.Duration(ms) * time.Millisecond
	}
	if file := variable("CERTIFICATE"); file != "" {
		pem, err := os.ReadFile(file)
		roots := x509.NewCertPool()
		if err != nil || !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("OTEL_EXPORTER_OTLP_CERTIFICATE is no file with a certificate")
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		x.client.Transport = transport
	}
	return x, nil
}

// ExportSpans tries once: who waits for a collector keeps a Job from its end. It
// returns no error, as OpenTelemetry would print that beside the log.
func (x *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := x.post(ctx, encode(spans))
	if failing := err != nil; x.failing.Swap(failing) != failing {
		if failing {
			x.log.Warn("traces are not delivered", "reason", err.Error())
		} else {
			x.log.Info("traces are delivered again")
		}
	}
	return nil
}

func (x *exporter) post(ctx context.Context, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, x.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header = x.headers
	response, err := x.client.Do(request)
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err // without the URL, which may have a key
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection is used again
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("the collector answers %s", response.Status)
	}
	return nil
}

func (x *exporter) Shutdown(context.Context) error { return nil }

// encode returns an ExportTraceServiceRequest of opentelemetry-proto's
// collector/trace/v1. All spans are of one process, so of one resource and scope.
func encode(spans []sdktrace.ReadOnlySpan) []byte {
	return message(nil, 1, func(b []byte) []byte { // ResourceSpans
		b = message(b, 1, func(b []byte) []byte { return attributes(b, 1, spans[0].Resource().Attributes()) })
		return message(b, 2, func(b []byte) []byte { // ScopeSpans
			b = message(b, 1, func(b []byte) []byte { return text(b, 1, spans[0].InstrumentationScope().Name) })
			for _, s := range spans {
				b = message(b, 2, func(b []byte) []byte { return span(b, s) })
			}
			return b
		})
	})
}

func span(b []byte, s sdktrace.ReadOnlySpan) []byte {
	b = spanContext(b, s.SpanContext(), 1, 2, 3, 16)
	if parent := s.Parent().SpanID(); parent.IsValid() {
		b = protowire.AppendBytes(protowire.AppendTag(b, 4, protowire.BytesType), parent[:])
	}
	b = text(b, 5, s.Name())
	b = number(b, 6, uint64(s.SpanKind()))
	b = moment(b, 7, s.StartTime())
	b = moment(b, 8, s.EndTime())
	b = attributes(b, 9, s.Attributes())
	for _, e := range s.Events() {
		b = message(b, 11, func(b []byte) []byte { return attributes(text(moment(b, 1, e.Time), 2, e.Name), 3, e.Attributes) })
	}
	for _, l := range s.Links() {
		b = message(b, 13, func(b []byte) []byte { return attributes(spanContext(b, l.SpanContext, 1, 2, 3, 6), 4, l.Attributes) })
	}
	return message(b, 15, func(b []byte) []byte {
		code := map[codes.Code]uint64{codes.Ok: 1, codes.Error: 2}[s.Status().Code] // other numbers than Go's
		return number(text(b, 2, s.Status().Description), 3, code)
	})
}

// spanContext writes ids, state and flags into the fields with the given numbers.
func spanContext(b []byte, c trace.SpanContext, traceField, spanField, stateField, flagsField protowire.Number) []byte {
	traceID, spanID := c.TraceID(), c.SpanID()
	b = protowire.AppendBytes(protowire.AppendTag(b, traceField, protowire.BytesType), traceID[:])
	b = protowire.AppendBytes(protowire.AppendTag(b, spanField, protowire.BytesType), spanID[:])
	b = text(b, stateField, c.TraceState().String())
	return protowire.AppendFixed32(protowire.AppendTag(b, flagsField, protowire.Fixed32Type), uint32(c.TraceFlags()))
}

func attributes(b []byte, field protowire.Number, all []attribute.KeyValue) []byte {
	for _, a := range all {
		b = message(b, field, func(b []byte) []byte {
			b = text(b, 1, string(a.Key))
			return message(b, 2, func(b []byte) []byte { return value(b, a.Value) })
		})
	}
	return b
}

func value(b []byte, v attribute.Value) []byte {
	switch v.Type() {
	case attribute.BOOL:
		return protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), protowire.EncodeBool(v.AsBool()))
	case attribute.INT64:
		return protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), uint64(v.AsInt64()))
	case attribute.FLOAT64:
		return protowire.AppendFixed64(protowire.AppendTag(b, 4, protowire.Fixed64Type), math.Float64bits(v.AsFloat64()))
	default: // lists are not used here
		return protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), valid(v.String()))
	}
}

func message(b []byte, field protowire.Number, f func([]byte) []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), f(nil))
}

func text(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), valid(s))
}

// valid replaces what is not UTF-8: a receiver would refuse all spans for it.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func moment(b []byte, field protowire.Number, t time.Time) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, field, protowire.Fixed64Type), uint64(t.UnixNano()))
}
