package api

import "net/http"

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

// handleReadyz says whether requests can be served: once RabbitMQ has been reached,
// always. When it is away again, in an outage of RabbitMQ all pods would lose their
// traffic: clients would find nobody, and no 503 with an id, no records and no page.
func (a *api) handleReadyz(w http.ResponseWriter, _ *http.Request) error {
	if a.publisher.Connects() == 0 {
		return problem{Status: http.StatusServiceUnavailable, Detail: "waiting for " + rabbitMQ}
	}
	return ok(w)
}

func ok(w http.ResponseWriter) error {
	write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
	return nil
}
