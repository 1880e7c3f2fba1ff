package observe_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/complex-app/observe"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/telemetry"
	"keda-p2/services/telemetry/telemetrytest"
)

// shown returns what a scrape shows.
func shown(r *metrics.Registry) string {
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

func tracing(t *testing.T) (*telemetry.Tracing, *telemetrytest.Receiver) {
	t.Helper()
	collector := telemetrytest.Start(t)
	return telemetry.Open(func(name string) string {
		return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}[name]
	}, "complex-app", "1", slog.New(slog.DiscardHandler)), collector
}

func router(t *testing.T, registry *metrics.Registry, tracing *telemetry.Tracing) chi.Router {
	t.Helper()
	r := chi.NewRouter()
	r.Use(observe.HTTP(registry, tracing))
	r.Get("/things/{id}", func(w http.ResponseWriter, _ *http.Request) {
		require.NoError(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)))
		require.NoError(t, http.NewResponseController(w).Flush())
	})
	r.Post("/things/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	r.Get("/cut", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half of")
		require.NoError(t, http.NewResponseController(w).Flush())
		panic(http.ErrAbortHandler)
	})
	r.Get("/healthz", func(http.ResponseWriter, *http.Request) {})
	return r
}

func call(t *testing.T, method, url string, header ...string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func TestRequestsByRoute(t *testing.T) {
	t.Parallel()
	registry := &metrics.Registry{}
	server := httptest.NewServer(router(t, registry, nil))
	t.Cleanup(server.Close)
	require.Equal(t, 200, call(t, http.MethodGet, server.URL+"/things/1"))
	require.Equal(t, 200, call(t, http.MethodGet, server.URL+"/things/2"))
	require.Equal(t, 503, call(t, http.MethodPost, server.URL+"/things/3"))
	require.Equal(t, 404, call(t, http.MethodGet, server.URL+"/nowhere/"+strings.Repeat("x", 100)))
	require.Equal(t, 405, call(t, "BREW", server.URL+"/things/4"))
	_ = call(t, http.MethodGet, server.URL+"/cut")
	require.Eventually(t, func() bool {
		return strings.Contains(shown(registry), `http_server_request_duration_seconds_count{http_request_method="GET",http_route="/cut",http_response_status_code="200",error_type="aborted"} 1`)
	}, contracttest.Patience, contracttest.Tick)

	got := shown(registry)
	for _, line := range []string{
		`http_server_request_duration_seconds_count{http_request_method="GET",http_route="/things/{id}",http_response_status_code="200"} 2`,
		`http_server_request_duration_seconds_count{http_request_method="POST",http_route="/things/{id}",http_response_status_code="503",error_type="503"} 1`,
		`http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404"} 1`,
		`http_server_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="405"} 1`,
		`http_server_active_requests{http_request_method="GET"} 0`,
	} {
		require.Contains(t, got, line+"\n")
	}
	require.NotContains(t, got, "nowhere")
}

func TestASpanForEachRequest(t *testing.T) {
	t.Parallel()
	tracing, collector := tracing(t)
	server := httptest.NewServer(router(t, &metrics.Registry{}, tracing))
	t.Cleanup(server.Close)
	call(t, http.MethodGet, server.URL+"/things/1?content=private", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	call(t, http.MethodPost, server.URL+"/things/1")
	call(t, http.MethodGet, server.URL+"/healthz")
	server.Close() // waits for the handlers
	tracing.Close()

	spans := collector.Spans()
	require.Len(t, spans, 2, "none for a probe")
	get, post := telemetrytest.Named(t, spans, "GET /things/{id}"), telemetrytest.Named(t, spans, "POST /things/{id}")
	require.Equal(t, otlp.Span_SPAN_KIND_SERVER, get.Kind)
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", telemetrytest.Hex(get.TraceId), "the caller's trace goes on")
	require.Equal(t, "/things/{id}", get.Attribute("http.route"))
	require.Equal(t, "/things/1", get.Attribute("url.path"))
	require.NotContains(t, get.String(), "private")
	require.Equal(t, otlp.Status_STATUS_CODE_UNSET, get.Status.Code)
	require.Equal(t, otlp.Status_STATUS_CODE_ERROR, post.Status.Code)
	require.Equal(t, "503", post.Attribute("error.type"))
}

// What observing costs each request: without tracing, and with it.
func BenchmarkHTTP(b *testing.B) {
	run := func(name string, use ...func(http.Handler) http.Handler) {
		h := chi.NewRouter()
		h.Use(use...)
		h.Post("/send", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/send", nil))
			}
		})
	}
	collector := telemetrytest.Start(b)
	tracing := telemetry.Open(func(name string) string {
		return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}[name]
	}, "s", "1", slog.New(slog.DiscardHandler))
	b.Cleanup(tracing.Close)
	run("plain")
	run("observed", observe.HTTP(&metrics.Registry{}, nil))
	run("traced", observe.HTTP(&metrics.Registry{}, tracing))
}
