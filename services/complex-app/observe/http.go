package observe

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// HTTP returns a middleware for a chi router. The metrics have OpenTelemetry's names for
// HTTP servers, as Prometheus writes them. Their route is the router's pattern: there
// are only so many of those, whatever paths clients invent.
func HTTP(registry prometheus.Registerer, provider trace.TracerProvider) func(http.Handler) http.Handler {
	metrics := promauto.With(registry)
	active := metrics.NewGaugeVec(prometheus.GaugeOpts{
		Name: "http_server_active_requests", Help: "Requests that are being answered.",
	}, []string{"http_request_method"})
	duration := metrics.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_server_request_duration_seconds", Help: "How long requests took.",
		Buckets: []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10},
	}, []string{"http_request_method", "http_route", "http_response_status_code", "error_type"})
	// a series that appears with its first value has no rate: the first burst would not
	// be seen
	duration.WithLabelValues(http.MethodPost, "/send", strconv.Itoa(http.StatusAccepted), "")

	measure := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			began, method := time.Now(), knownMethod(r.Method)
			answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			active.WithLabelValues(method).Inc()
			errorType := "aborted" // unless the handler returns
			defer func() {
				active.WithLabelValues(method).Dec()
				// otelhttp knows neither the route before chi has found it, nor an error
				span, status := trace.SpanFromContext(r.Context()), cmp.Or(answer.Status(), http.StatusOK)
				if r.Pattern != "" {
					span.SetName(method + " " + r.Pattern)
					span.SetAttributes(attribute.String("http.route", r.Pattern))
				}
				if errorType != "" {
					span.SetAttributes(attribute.String("error.type", errorType))
					span.SetStatus(codes.Error, errorType)
				}
				record(duration.WithLabelValues(method, r.Pattern, strconv.Itoa(status), errorType), began, span)
			}()
			next.ServeHTTP(answer, r)
			errorType = ""
			if answer.Status() >= http.StatusInternalServerError {
				errorType = strconv.Itoa(answer.Status())
			}
		})
	}
	// A span that goes nowhere costs twice what all else of a request does. It is needed
	// only to pass on the trace that the client has begun.
	_, isOff := provider.Tracer("").(noop.Tracer)
	isTraced := func(r *http.Request) bool {
		return !slices.Contains(untraced, r.URL.Path) && (!isOff || r.Header.Get("Traceparent") != "")
	}
	spans := otelhttp.NewMiddleware("request", otelhttp.WithTracerProvider(provider),
		otelhttp.WithPropagators(propagation.TraceContext{}), otelhttp.WithFilter(isTraced))
	return func(next http.Handler) http.Handler { return spans(measure(next)) }
}

// untraced are the probes and what an open page asks every second.
var untraced = []string{"/healthz", "/readyz", "/events"}

// knownMethod bounds the number of series.
func knownMethod(method string) string {
	if slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions}, method) {
		return method
	}
	return "_OTHER"
}
