package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"keda-p2/services/complex-app/live"
	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

var (
	errNoSuchPath  = errors.New("there is nothing at this path; POST /send takes an event, POST /send/batch many, GET /data answers with the records, /openapi.yaml describes all")
	errWrongMethod = errors.New("this path does not take this method; the Allow header names those that it takes")
	errCrossOrigin = errors.New("a browser sent this for a page of another site; only this service's own page may")
	errMediaType   = errors.New("the body must be application/json or application/x-www-form-urlencoded")
	errBatchType   = errors.New("the body must be application/x-ndjson: one JSON object a line")
	errStore       = errors.New("MongoDB is not available")
)

type (
	// badRequest is a mistake of the caller, in words for the caller.
	badRequest string
	// notReady names the services that are missing.
	notReady []string
	// unsent is an event that was not accepted, or not for certain.
	unsent struct {
		id string
		error
	}
)

func (e badRequest) Error() string { return string(e) }
func (e notReady) Error() string   { return "waiting for " + strings.Join(e, " and ") }
func (e unsent) Unwrap() error     { return e.error }

// problem is the body of every error: a problem document (RFC 9457).
type problem struct {
	Type    string   `json:"type"`
	Title   string   `json:"title"`
	Status  int      `json:"status"`
	Detail  string   `json:"detail"`
	ID      string   `json:"id,omitempty"`      // the id under which to send the event again
	Missing []string `json:"missing,omitempty"` // the services that are not there
}

// newProblem maps every error of a handler to its answer. Only errors about the
// request itself are told in their own words: others may name hosts.
func newProblem(err error) problem {
	var (
		p       = problem{Type: "about:blank", Status: http.StatusInternalServerError, Detail: "this is our mistake; the log says more"}
		bad     badRequest
		missing notReady
		event   unsent
	)
	if errors.As(err, &event) {
		p.ID = event.id
	}
	switch {
	case errors.As(err, &bad), errors.Is(err, contract.ErrInvalid), errors.Is(err, records.ErrUnknown):
		p.Status, p.Detail, p.ID = http.StatusBadRequest, err.Error(), ""
	case errors.Is(err, errCrossOrigin):
		p.Status, p.Detail = http.StatusForbidden, err.Error()
	case errors.Is(err, errNoSuchPath), errors.Is(err, queue.ErrNoDeadLetter):
		p.Status, p.Detail = http.StatusNotFound, err.Error()
	case errors.Is(err, errWrongMethod):
		p.Status, p.Detail = http.StatusMethodNotAllowed, err.Error()
	case errors.Is(err, errMediaType), errors.Is(err, errBatchType):
		p.Status, p.Detail = http.StatusUnsupportedMediaType, err.Error()
	case errors.As(err, &missing):
		p.Status, p.Detail, p.Missing = http.StatusServiceUnavailable, err.Error(), missing
	case p.ID == "" && (errors.Is(err, queue.ErrUnavailable) || errors.Is(err, queue.ErrUnconfirmed)):
		p.Status, p.Detail = http.StatusServiceUnavailable, "RabbitMQ is not available; ask again"
	case errors.Is(err, queue.ErrUnavailable):
		p.Status, p.Detail = http.StatusServiceUnavailable, "RabbitMQ is not available and the event was not accepted; send it again"
	case errors.Is(err, queue.ErrUnconfirmed):
		p.Status, p.Detail = http.StatusServiceUnavailable,
			"RabbitMQ did not confirm the event, which may have been accepted all the same; send it again with this id as its Idempotency-Key, so that it cannot count twice"
	case errors.Is(err, live.ErrTooMany), errors.Is(err, live.ErrClosed):
		p.Status, p.Detail = http.StatusServiceUnavailable, err.Error()+"; try again later"
	case errors.Is(err, errStore):
		p.Status, p.Detail = http.StatusServiceUnavailable, "MongoDB is not available; ask again"
	}
	p.Title = http.StatusText(p.Status)
	return p
}

// retryAfter goes with every 503, in seconds.
const retryAfter = "2"

// handle turns a handler's error into its answer, and logs those that are not
// the caller's. No error is logged elsewhere.
func (a *api) handle(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			// A slow body is cut off, whoever reads it: the server waits for one
			// that no handler wants before it answers. Not every ResponseWriter
			// can do that: tests' cannot.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
		}
		err := h(w, r)
		if err == nil {
			return
		}
		p := newProblem(err)
		if p.Status >= http.StatusInternalServerError && p.Missing == nil && r.Context().Err() == nil {
			a.log.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "status", p.Status, "id", p.ID, "reason", err.Error())
		}
		if p.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		_ = json.NewEncoder(w).Encode(p) // fails only when the client is gone
	}
}
