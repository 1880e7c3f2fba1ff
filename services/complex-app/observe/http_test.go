package observe_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"keda-p2/services/complex-app/observe"
	"keda-p2/services/contract/contracttest"
)

// shown returns what a scrape shows.
func shown(r *prometheus.Registry) string { return scrape(r, "") }

func scrape(r *prometheus.Registry, accept string) string {
	w := httptest.NewRecorder()
	request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	request.Header.Set("Accept", accept)
	observe.Handler(r).ServeHTTP(w, request)
	return w.Body.String()
}

// recorded returns a provider, and the spans that it has made.
func recorded() (trace.TracerProvider, func() tracetest.SpanStubs) {
	recorder := tracetest.NewInMemoryExporter()
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(recorder)), recorder.GetSpans
}

func named(t *testing.T, spans tracetest.SpanStubs, name string) (found tracetest.SpanStub, attributes map[attribute.Key]string) {
	t.Helper()
	attributes = map[attribute.Key]string{}
	for _, s := range spans {
		if s.Name == name {
			for _, a := range s.Attributes {
				attributes[a.Key] = a.Value.String()
			}
			return s, attributes
		}
	}
	require.Fail(t, "no span", "%s", name)
	return found, attributes
}

func router(t *testing.T, registry *prometheus.Registry, provider trace.TracerProvider) chi.Router {
	t.Helper()
	r := chi.NewRouter()
	r.Use(observe.HTTP(registry, provider))
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
	r.Get("/events", func(w http.ResponseWriter, _ *http.Request) {
		require.NoError(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)))
		require.NoError(t, http.NewResponseController(w).Flush())
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
	registry := prometheus.NewRegistry()
	server := httptest.NewServer(router(t, registry, noop.NewTracerProvider()))
	t.Cleanup(server.Close)
	require.Equal(t, 200, call(t, http.MethodGet, server.URL+"/things/1"))
	require.Equal(t, 200, call(t, http.MethodGet, server.URL+"/things/2"))
	require.Equal(t, 503, call(t, http.MethodPost, server.URL+"/things/3"))
	require.Equal(t, 404, call(t, http.MethodGet, server.URL+"/nowhere/"+strings.Repeat("x", 100)))
	require.Equal(t, 405, call(t, "BREW", server.URL+"/things/4"))
	_ = call(t, http.MethodGet, server.URL+"/cut")
	require.Eventually(t, func() bool {
		return strings.Contains(shown(registry), `http_server_request_duration_seconds_count{error_type="aborted",http_request_method="GET",http_response_status_code="200",http_route="/cut"} 1`)
	}, contracttest.Patience, contracttest.Tick)

	got := shown(registry)
	for _, line := range []string{
		`http_server_request_duration_seconds_count{error_type="",http_request_method="GET",http_response_status_code="200",http_route="/things/{id}"} 2`,
		`http_server_request_duration_seconds_count{error_type="503",http_request_method="POST",http_response_status_code="503",http_route="/things/{id}"} 1`,
		`http_server_request_duration_seconds_count{error_type="",http_request_method="GET",http_response_status_code="404",http_route=""} 1`,
		`http_server_request_duration_seconds_count{error_type="",http_request_method="_OTHER",http_response_status_code="405",http_route=""} 1`,
		`http_server_active_requests{http_request_method="GET"} 0`,
	} {
		require.Contains(t, got, line+"\n")
	}
	require.NotContains(t, got, "nowhere")
}

func TestASpanForEachRequest(t *testing.T) {
	t.Parallel()
	provider, spans := recorded()
	registry := prometheus.NewRegistry()
	server := httptest.NewServer(router(t, registry, provider))
	t.Cleanup(server.Close)
	call(t, http.MethodGet, server.URL+"/things/1?content=private", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	call(t, http.MethodPost, server.URL+"/things/1")
	call(t, http.MethodGet, server.URL+"/cut")
	call(t, http.MethodGet, server.URL+"/nowhere")
	call(t, http.MethodGet, server.URL+"/healthz")
	require.Equal(t, 200, call(t, http.MethodGet, server.URL+"/events"))
	server.Close() // waits for the handlers

	require.Len(t, spans(), 4, "none for a probe, none for an open page")
	get, attributes := named(t, spans(), "GET /things/{id}")
	require.Equal(t, trace.SpanKindServer, get.SpanKind)
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", get.SpanContext.TraceID().String(), "the caller's trace goes on")
	require.Equal(t, "/things/{id}", attributes["http.route"])
	require.Equal(t, "/things/1", attributes["url.path"])
	require.NotContains(t, fmt.Sprint(attributes), "private")
	require.Equal(t, codes.Unset, get.Status.Code)
	post, attributes := named(t, spans(), "POST /things/{id}")
	require.Equal(t, codes.Error, post.Status.Code)
	require.Equal(t, "503", attributes["error.type"])
	cut, attributes := named(t, spans(), "GET /cut")
	require.Equal(t, codes.Error, cut.Status.Code)
	require.Equal(t, "aborted", attributes["error.type"])
	require.Equal(t, "/cut", attributes["http.route"])
	_, attributes = named(t, spans(), "GET")
	require.Equal(t, "/nowhere", attributes["url.path"])
	require.NotContains(t, attributes, attribute.Key("http.route"))

	require.Contains(t, scrape(registry, "application/openmetrics-text"), `# {trace_id="0af7651916cd43dd8448eb211c80319c"}`)
	require.NotContains(t, shown(registry), "trace_id", "only OpenMetrics has exemplars")
}

// A client's trace reaches the Job also where this service itself sends no spans.
func TestTheCallersTraceGoesOnWithoutSpans(t *testing.T) {
	t.Parallel()
	var seen []string
	handler := observe.HTTP(prometheus.NewRegistry(), noop.NewTracerProvider())(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen = append(seen, trace.SpanContextFromContext(r.Context()).TraceID().String())
	}))
	request := httptest.NewRequest(http.MethodPost, "/send", nil)
	handler.ServeHTTP(httptest.NewRecorder(), request)
	request.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	handler.ServeHTTP(httptest.NewRecorder(), request)
	require.Equal(t, []string{trace.TraceID{}.String(), "0af7651916cd43dd8448eb211c80319c"}, seen)
}
