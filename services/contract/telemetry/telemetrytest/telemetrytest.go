// Package telemetrytest receives spans as a collector does: OTLP over HTTP, decoded
// with OpenTelemetry's own definitions.
package telemetrytest

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span that was received, and what is known of its sender.
type Span struct {
	*otlp.Span
	Resource map[string]string
}

// Attribute returns an attribute as text, or "".
func (s Span) Attribute(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			if text := a.Value.GetStringValue(); text != "" {
				return text
			}
			return a.Value.String()
		}
	}
	return ""
}

// Start and End are the span's.
func (s Span) Start() time.Time { return time.Unix(0, int64(s.StartTimeUnixNano)) }
func (s Span) End() time.Time   { return time.Unix(0, int64(s.EndTimeUnixNano)) }

// Hex writes an id as a log does.
func Hex(id []byte) string { return hex.EncodeToString(id) }

// Receiver is a collector.
type Receiver struct {
	URL string // for OTEL_EXPORTER_OTLP_ENDPOINT

	mu      sync.Mutex
	spans   []Span
	headers http.Header
}

// Start starts a receiver, which ends with the test.
func Start(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{}
	server := httptest.NewServer(http.HandlerFunc(r.receive))
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

func (r *Receiver) receive(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	// TracesData has the same fields as the request that is sent, and lies in a
	// package without gRPC
	var data otlp.TracesData
	if err != nil || request.URL.Path != "/v1/traces" || request.Header.Get("Content-Type") != "application/x-protobuf" ||
		proto.Unmarshal(body, &data) != nil || len(data.ProtoReflect().GetUnknown()) > 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = request.Header
	for _, rs := range data.ResourceSpans {
		about := map[string]string{}
		for _, a := range rs.Resource.GetAttributes() {
			about[a.Key] = a.Value.GetStringValue()
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				r.spans = append(r.spans, Span{s, about})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// Spans returns what has come so far, in the order of their beginning.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.spans)
	slices.SortStableFunc(all, func(a, b Span) int { return a.Start().Compare(b.Start()) })
	return all
}

// Headers returns those of the last request.
func (r *Receiver) Headers() http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.headers
}

// Named returns the one span with the given name.
func Named(t testing.TB, spans []Span, name string) Span {
	t.Helper()
	var found []Span
	var names []string
	for _, s := range spans {
		names = append(names, s.Name)
		if s.Name == name {
			found = append(found, s)
		}
	}
	require.Len(t, found, 1, "one %q in %q", name, names)
	return found[0]
}
