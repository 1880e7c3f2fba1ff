// Package observe tells what complex-app does: as metrics, and as spans of traces
// when tracing is on. It stands around the API and the publisher, which know nothing
// of it.
package observe

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/contract/telemetry"
)

var errAborted = errors.New("the answer was cut off")

// HTTP returns a middleware for a chi router that observes its requests. Names are
// OpenTelemetry's of HTTP servers, as Prometheus writes them. Their route is the
// router's pattern: there are only so many of those, whatever paths clients think of.
func HTTP(r *metrics.Registry, t *telemetry.Tracing) func(http.Handler) http.Handler {
	active := r.Gauge("http_server_active_requests", "Requests that are being answered.", "http_request_method")
	duration := r.Histogram("http_server_request_duration_seconds", "How long requests took.",
		[]float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10},
		"http_request_method", "http_route", "http_response_status_code", "error_type")
	duration.Expect(http.MethodPost, "/send", strconv.Itoa(http.StatusAccepted), "")
	observe := func(w http.ResponseWriter, request *http.Request, next http.Handler) {
		began, method := time.Now(), knownMethod(request.Method)
		route := chi.RouteContext(request.Context())
		request, end := startRequest(request, method, t)
		answer := &answer{ResponseWriter: w, status: http.StatusOK}
		active.Add(1, method)
		cutOff := true
		defer func() { // also when the handler panics, to cut an answer off
			active.Add(-1, method)
			errorType := ""
			var err error
			switch {
			case cutOff:
				errorType, err = "aborted", errAborted
			case answer.status >= http.StatusInternalServerError:
				errorType = strconv.Itoa(answer.status)
				err = errors.New(http.StatusText(answer.status))
			}
			duration.Observe(time.Since(began).Seconds(), method, pattern(route), strconv.Itoa(answer.status), errorType)
			end(route, answer.status, errorType, err)
		}()
		next.ServeHTTP(answer, request)
		cutOff = false
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) { observe(w, request, next) })
	}
}

// pattern is empty where no route was found.
func pattern(c *chi.Context) string {
	if p := c.RoutePattern(); p != "/*" {
		return p
	}
	return ""
}

// knownMethod keeps the number of names small, as the conventions ask for.
func knownMethod(method string) string {
	if slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions}, method) {
		return method
	}
	return "_OTHER"
}

// startRequest begins the span of a request, under the caller's if it has one. The
// probes and the page's endless streams would only be noise among the traces.
func startRequest(r *http.Request, method string, t *telemetry.Tracing) (*http.Request, func(*chi.Context, int, string, error)) {
	if t == nil || r.URL.Path == "/healthz" || r.URL.Path == "/readyz" || r.URL.Path == "/events" {
		return r, func(*chi.Context, int, string, error) {}
	}
	ctx := telemetry.WithHeaders(r.Context(), r.Header.Get)
	ctx, end := t.Start(ctx, method, trace.SpanKindServer, trace.WithAttributes(
		// no url.query: an event may stand there
		attribute.String("http.request.method", method),
		attribute.String("url.path", r.URL.Path),
		attribute.String("url.scheme", "http"),
		attribute.String("user_agent.original", r.UserAgent()),
	))
	return r.WithContext(ctx), func(route *chi.Context, status int, errorType string, err error) {
		span := trace.SpanFromContext(ctx)
		if p := pattern(route); p != "" {
			span.SetName(method + " " + p)
			span.SetAttributes(attribute.String("http.route", p))
		}
		span.SetAttributes(attribute.Int("http.response.status_code", status))
		if err != nil {
			span.SetAttributes(attribute.String("error.type", errorType))
			span.SetStatus(codes.Error, err.Error())
		}
		end(nil)
	}
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
