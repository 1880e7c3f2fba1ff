package observe

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// HTTP returns a middleware for a chi router. Metrics have OpenTelemetry's names for
// HTTP servers, as Prometheus writes them. Their route is the router's pattern: there
// are only so many of those, whatever paths clients invent.
func HTTP(r prometheus.Registerer, provider trace.TracerProvider) func(http.Handler) http.Handler {
	m := httpMetrics{
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "http_server_active_requests", Help: "Requests that are being answered.",
		}, []string{"http_request_method"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_server_request_duration_seconds", Help: "How long requests took.",
			Buckets: []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10},
		}, []string{"http_request_method", "http_route", "http_response_status_code", "error_type"}),
	}
	r.MustRegister(m.active, m.duration)
	// a series that appears with its first value has no rate: the first burst would not
	// be seen
	m.duration.WithLabelValues(http.MethodPost, "/send", strconv.Itoa(http.StatusAccepted), "")

	spans := otelhttp.NewMiddleware("request", otelhttp.WithTracerProvider(provider),
		otelhttp.WithPropagators(propagation.TraceContext{}), otelhttp.WithFilter(isTraced))
	return func(next http.Handler) http.Handler { return spans(m.around(next)) }
}

// isTraced leaves out the probes and what an open page asks every second.
func isTraced(r *http.Request) bool {
	return !slices.Contains([]string{"/healthz", "/readyz", "/events"}, r.URL.Path)
}

type httpMetrics struct {
	active   *prometheus.GaugeVec
	duration *prometheus.HistogramVec
}

func (m httpMetrics) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, method := time.Now(), knownMethod(r.Method)
		answer := &answer{ResponseWriter: w, status: http.StatusOK}
		m.active.WithLabelValues(method).Inc()
		errorType := "aborted" // unless the handler returns
		defer func() {
			m.active.WithLabelValues(method).Dec()
			span, route := trace.SpanFromContext(r.Context()), chi.RouteContext(r.Context()).RoutePattern()
			if route == "/*" { // no route was found
				route = ""
			}
			span.SetAttributes(attribute.String("http.route", route))
			if errorType != "" {
				span.SetAttributes(attribute.String("error.type", errorType))
				span.SetStatus(codes.Error, errorType)
			}
			record(m.duration.WithLabelValues(method, route, strconv.Itoa(answer.status), errorType),
				time.Since(began).Seconds(), span.SpanContext())
		}()
		next.ServeHTTP(answer, r)
		errorType = ""
		if answer.status >= http.StatusInternalServerError {
			errorType = strconv.Itoa(answer.status)
		}
	})
}

// knownMethod bounds the number of series.
func knownMethod(method string) string {
	if slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions}, method) {
		return method
	}
	return "_OTHER"
}

// answer notes the status.
type answer struct {
	http.ResponseWriter
	status int
	begun  bool
}

func (a *answer) WriteHeader(status int) {
	if !a.begun && status >= 200 { // not an informational one
		a.status, a.begun = status, true
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(b)
}

// Unwrap lets a handler set deadlines and flush, through http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
