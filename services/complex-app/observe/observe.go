// Package observe adds metrics and traces to the API, the publisher and the records,
// which know nothing of it. Only main imports it: to do without, delete this folder and
// main's lines that are marked "optional: observe".
package observe

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"
)

// pingTimeout keeps a scrape from waiting for a server that is away.
const pingTimeout = time.Second

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

// Ready shows which of the service's dependencies it can use now.
func Ready(registry prometheus.Registerer, rabbitMQ func() error, mongoDB func(context.Context) error) {
	for name, check := range map[string]func(context.Context) error{
		"RabbitMQ": func(context.Context) error { return rabbitMQ() },
		"MongoDB":  mongoDB,
	} {
		promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keda_p2_dependency_ready", Help: "1 when the dependency can be used, else 0.",
			ConstLabels: prometheus.Labels{"dependency": name},
		}, func() float64 {
			ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
			defer cancel()
			if check(ctx) != nil {
				return 0
			}
			return 1
		})
	}
}

// record adds the time since began to a histogram. Its exemplar is the trace's id when
// the trace is sampled.
func record(o prometheus.Observer, began time.Time, span trace.Span) {
	var exemplar prometheus.Labels
	if s := span.SpanContext(); s.IsSampled() {
		exemplar = prometheus.Labels{"trace_id": s.TraceID().String()}
	}
	o.(prometheus.ExemplarObserver).ObserveWithExemplar(time.Since(began).Seconds(), exemplar)
}
