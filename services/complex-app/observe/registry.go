// Package observe adds metrics and traces to the API, the publisher and the records,
// which know nothing of it. Only main imports it: to do without, delete this folder and
// main's lines that are marked as optional.
package observe

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"
)

// NewRegistry returns a registry with the metrics of Go and of the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Handler serves the metrics, as OpenMetrics with exemplars to those who ask for it.
func Handler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// record adds the time since began to a histogram. Its exemplar is the trace's id when
// the trace is sampled.
func record(o prometheus.Observer, began time.Time, span trace.Span) {
	seconds := time.Since(began).Seconds()
	if s := span.SpanContext(); s.IsSampled() {
		o.(prometheus.ExemplarObserver).ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": s.TraceID().String()})
		return
	}
	o.Observe(seconds)
}
