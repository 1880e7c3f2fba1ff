package api

import "net/http"

// status answers with how things are now: GET /status. It is 200 also when
// RabbitMQ or MongoDB is down, and says so.
func (a *api) status(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, http.StatusOK, a.view.Status(r.Context()))
}
