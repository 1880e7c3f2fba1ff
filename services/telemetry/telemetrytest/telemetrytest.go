// Package telemetrytest receives spans as a collector does.
package telemetrytest

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
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

// Receiver is a collector. It takes OTLP over gRPC and over HTTP in protobuf.
type Receiver struct {
	URL string // for OTEL_EXPORTER_OTLP_ENDPOINT, with either protocol

	mu      sync.Mutex
	spans   []Span
	headers http.Header
}

// Start starts a receiver, which ends with the test.
func Start(t testing.TB) *Receiver {
	t.Helper()
	return StartServer(t, func(s *httptest.Server) {
		s.Config.Protocols = &http.Protocols{}
		s.Config.Protocols.SetHTTP1(true)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	})
}

// StartServer starts a receiver in a server that start starts, for example with TLS.
func StartServer(t testing.TB, start func(*httptest.Server)) *Receiver {
	t.Helper()
	r := &Receiver{}
	grpcServer := grpc.NewServer()
	collector.RegisterTraceServiceServer(grpcServer, service{receiver: r})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		r.headers = request.Header
		r.mu.Unlock()
		if request.Header.Get("Content-Type") == "application/grpc" {
			grpcServer.ServeHTTP(w, request)
		} else {
			r.receive(w, request)
		}
	}))
	start(server)
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

// service is the receiver's side of gRPC.
type service struct {
	collector.UnimplementedTraceServiceServer
	receiver *Receiver
}

func (s service) Export(_ context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.receiver.add(request)
	return &collector.ExportTraceServiceResponse{}, nil
}

func (r *Receiver) receive(w http.ResponseWriter, request *http.Request) {
	body := request.Body
	var err error
	if request.Header.Get("Content-Encoding") == "gzip" {
		body, err = gzip.NewReader(request.Body)
	}
	var content []byte
	if err == nil {
		content, err = io.ReadAll(body)
	}
	var data collector.ExportTraceServiceRequest
	if err != nil || request.URL.Path != "/v1/traces" || request.Header.Get("Content-Type") != "application/x-protobuf" ||
		proto.Unmarshal(content, &data) != nil || len(data.ProtoReflect().GetUnknown()) > 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.add(&data)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (r *Receiver) add(data *collector.ExportTraceServiceRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
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
