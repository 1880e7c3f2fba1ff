package api

import "net/http"

// handleHealthz says that the process runs. It looks at no other service: a restart
// of this one would mend none of them.
func (a *api) handleHealthz(w http.ResponseWriter, _ *http.Request) error {
	write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
	return nil
}

// handleReadyz says whether requests can be served: once RabbitMQ has been reached,
// always. When it is away again, in an outage of RabbitMQ all pods would lose their
// traffic: clients would find nobody, and no 503 with an id, no records and no page.
func (a *api) handleReadyz(w http.ResponseWriter, r *http.Request) error {
	if a.publisher.Connects() == 0 {
		return problem{Status: http.StatusServiceUnavailable, Detail: "waiting for RabbitMQ"}
	}
	return a.handleHealthz(w, r)
}
