package telemetry_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/telemetry"
)

func TestALineHasTheSpanOfItsContext(t *testing.T) {
	t.Parallel()
	out, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	log := telemetry.NewLogger(out, slog.LevelInfo, "auto").With("id", "id-1") // a file is no terminal
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}}))
	log.DebugContext(ctx, "not shown")
	log.InfoContext(ctx, "two\nlines", "attempt", 2)
	content, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	var line map[string]any
	require.NoError(t, json.Unmarshal(content, &line), "one line: %s", content)
	require.Equal(t, "two\nlines", line["msg"])
	require.Equal(t, "id-1", line["id"])
	require.EqualValues(t, 2, line["attempt"])
	require.Equal(t, "01000000000000000000000000000000", line["trace_id"])
	require.Equal(t, "0200000000000000", line["span_id"])
}

func TestLogFormats(t *testing.T) {
	t.Parallel()
	var f telemetry.LogFormat
	for _, good := range []string{"auto", "json", "text"} {
		require.NoError(t, f.Decode(good))
		require.EqualValues(t, good, f)
	}
	require.Error(t, f.Decode("xml"))

	out, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	telemetry.NewLogger(out, slog.LevelInfo, "text").Info("hello", "id", "id-1")
	content, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Contains(t, string(content), "level=INFO msg=hello id=id-1\n")
}
