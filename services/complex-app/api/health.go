package api

import (
	"context"
	"io"
	"net/http"
	"time"
)

// pingTimeout is shorter than a probe's patience.
const pingTimeout = time.Second

// healthz says that the process runs. It looks at no other service: a restart
// of this one would mend none of them.
func (a *api) healthz(w http.ResponseWriter, _ *http.Request) error {
	return ok(w)
}

// readyz says whether requests can be served now, or names what is missing.
func (a *api) readyz(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), pingTimeout)
	defer cancel()
	var missing notReady
	if a.publisher.Ready() != nil {
		missing = append(missing, "RabbitMQ")
	}
	if a.store.Ping(ctx) != nil {
		missing = append(missing, "MongoDB")
	}
	if missing != nil {
		return missing
	}
	return ok(w)
}

func ok(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n")
	return nil
}
