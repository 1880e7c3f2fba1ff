package observe

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// pingTimeout keeps a scrape from waiting for a server that is away.
const pingTimeout = time.Second

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
