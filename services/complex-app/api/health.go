package api

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// pingTimeout is shorter than a probe's timeout.
const pingTimeout = time.Second

// The names of what the service needs.
const (
	rabbitMQ = "RabbitMQ"
	mongoDB  = "MongoDB"
)

// handleHealthz says that the process runs. It looks at no other service: a restart
// of this one would mend none of them.
func (a *api) handleHealthz(w http.ResponseWriter, _ *http.Request) error {
	return ok(w)
}

// handleReadyz says whether requests can be served now, or names what is missing:
// GET /readyz?exclude=…. What is excluded, as in the API server's own /readyz, is
// not looked at.
func (a *api) handleReadyz(w http.ResponseWriter, r *http.Request) error {
	values, err := parseParameters(r.URL.RawQuery, "exclude")
	if err != nil {
		return err
	}
	exclude := values.Get("exclude")
	if values.Has("exclude") && exclude != rabbitMQ && exclude != mongoDB {
		return badRequest("exclude must be " + rabbitMQ + " or " + mongoDB)
	}
	ctx, cancel := context.WithTimeout(r.Context(), pingTimeout)
	defer cancel()
	var missing []string
	if exclude != rabbitMQ && a.publisher.Ready() != nil {
		missing = append(missing, rabbitMQ)
	}
	if exclude != mongoDB && a.store.Ping(ctx) != nil {
		missing = append(missing, mongoDB)
	}
	if missing != nil {
		return problem{Status: http.StatusServiceUnavailable, Detail: "waiting for " + strings.Join(missing, " and "), Missing: missing}
	}
	return ok(w)
}

func ok(w http.ResponseWriter) error {
	write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
	return nil
}
