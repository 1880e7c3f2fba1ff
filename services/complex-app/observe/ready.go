package observe

import (
	"context"
	"time"

	"keda-p2/services/complex-app/metrics"
)

// pingTimeout keeps a scrape from waiting for a server that is away.
const pingTimeout = time.Second

// Ready shows which of the service's dependencies it can use now.
func Ready(r *metrics.Registry, rabbitMQ func() error, mongoDB func(context.Context) error) {
	r.Func("gauge", "keda_p2_dependency_ready", "1 when the dependency can be used, else 0.", func(emit metrics.Emit) {
		ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
		defer cancel()
		for name, err := range map[string]error{"RabbitMQ": rabbitMQ(), "MongoDB": mongoDB(ctx)} {
			if err == nil {
				emit(1, name)
			} else {
				emit(0, name)
			}
		}
	}, "dependency")
}
