// Package telemetry starts the log and the traces of the services.
package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel/trace"
)

// LogFormat is json, text, or auto, which is text on a terminal and json elsewhere, as
// in a container.
type LogFormat string

// Decode implements envconfig.Decoder.
func (f *LogFormat) Decode(value string) error {
	if value != "auto" && value != "json" && value != "text" {
		return fmt.Errorf("%q is not one of auto, json and text", value)
	}
	*f = LogFormat(value)
	return nil
}

// NewLogger returns a logger that writes one line per event to out. A line has the ids
// of the span in its context, if there is one.
func NewLogger(out *os.File, level slog.Level, format LogFormat) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	info, err := out.Stat()
	isTerminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	if format == "text" || format == "auto" && isTerminal {
		return slog.New(withSpan{slog.NewTextHandler(out, o)})
	}
	return slog.New(withSpan{slog.NewJSONHandler(out, o)})
}

// withSpan adds trace_id and span_id, the names that OpenTelemetry gives them in
// logs of other formats than its own.
type withSpan struct{ slog.Handler }

func (h withSpan) Handle(ctx context.Context, r slog.Record) error {
	if c := trace.SpanContextFromContext(ctx); c.IsValid() {
		r.AddAttrs(slog.String("trace_id", c.TraceID().String()), slog.String("span_id", c.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h withSpan) WithAttrs(attrs []slog.Attr) slog.Handler {
	return withSpan{h.Handler.WithAttrs(attrs)}
}

func (h withSpan) WithGroup(name string) slog.Handler { return withSpan{h.Handler.WithGroup(name)} }
