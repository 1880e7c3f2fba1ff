package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// problem is the body of every error: a problem document (RFC 9457).
type problem struct {
	Type    string   `json:"type"`
	Title   string   `json:"title"`
	Status  int      `json:"status"`
	Detail  string   `json:"detail"`
	ID      string   `json:"id,omitempty"`      // the id under which to send the event again
	Missing []string `json:"missing,omitempty"` // the servers that are not available
	Done    *int     `json:"done,omitempty"`    // how many dead letters were removed all the same
}

// refusal is an error that is its own answer: its text is meant for the client.
type refusal struct {
	status int
	detail string
}

func (r refusal) Error() string { return r.detail }

func badRequest(detail string) error { return refusal{http.StatusBadRequest, detail} }

func tooLarge(limit int64) error {
	return refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is longer than %d bytes", limit)}
}

var (
	errNoSuchPath  = refusal{http.StatusNotFound, "there is nothing at this path; POST /send takes an event, POST /send/batch many, GET /data answers with the records, /openapi.yaml describes all"}
	errWrongMethod = refusal{http.StatusMethodNotAllowed, "this path does not take this method; the Allow header names those that it takes"}
	errCrossOrigin = refusal{http.StatusForbidden, "a browser sent this for a page of another site; only this service's own page may"}
	errBusy        = refusal{http.StatusServiceUnavailable, "too many requests of this kind at a time; send it again later"}

	errStore = errors.New("MongoDB is not available")
)

// answers maps the errors of other packages to answers. An empty detail is the error's
// own text; the others may name hosts.
var answers = []struct {
	err    error
	status int
	detail string
}{
	{contract.ErrInvalid, http.StatusBadRequest, ""},
	{records.ErrUnknown, http.StatusBadRequest, ""},
	{queue.ErrNoDeadLetter, http.StatusNotFound, ""},
	{queue.ErrCutShort, http.StatusServiceUnavailable, "the time was up, perhaps while others were at the dead letters; ask again"},
	{errStore, http.StatusServiceUnavailable, "MongoDB is not available; ask again"},
	{queue.ErrUnavailable, http.StatusServiceUnavailable, "RabbitMQ is not available; ask again"},
	{queue.ErrUnconfirmed, http.StatusServiceUnavailable, "RabbitMQ is not available; ask again"},
}

// unsent is an event that was not accepted, or not for certain.
type unsent struct {
	id string
	error
}

func (e unsent) Unwrap() error { return e.error }

// partly is a redrive or discard that was cut short.
type partly struct {
	error
	before string // what was done, in words
	done   int
}

func (e partly) Unwrap() error { return e.error }

// notReady names the servers that are missing.
type notReady []string

func (e notReady) Error() string { return "waiting for " + strings.Join(e, " and ") }

func newProblem(err error) problem {
	p := problem{Type: "about:blank", Status: http.StatusInternalServerError, Detail: "internal error; see the server's log"}
	for _, a := range answers {
		if errors.Is(err, a.err) {
			p.Status, p.Detail = a.status, a.detail
			if p.Detail == "" {
				p.Detail = err.Error()
			}
			break
		}
	}
	var own refusal
	if errors.As(err, &own) {
		p.Status, p.Detail = own.status, own.detail
	}
	var missing notReady
	if errors.As(err, &missing) {
		p.Status, p.Detail, p.Missing = http.StatusServiceUnavailable, err.Error(), missing
	}
	var event unsent
	if errors.As(err, &event) {
		p.ID = event.id
		if errors.Is(err, queue.ErrUnconfirmed) {
			p.Detail = "RabbitMQ did not confirm the event, which may have been accepted all the same; send it again with this id as its Idempotency-Key, so that it cannot count twice"
		} else if p.Status == http.StatusServiceUnavailable {
			p.Detail = "RabbitMQ is not available and the event was not accepted; send it again"
		}
	}
	var cut partly
	if errors.As(err, &cut) {
		p.Detail, p.Done = cut.before+"; then "+p.Detail, &cut.done
	}
	p.Title = http.StatusText(p.Status)
	return p
}

// retryAfter goes with every 503, in seconds.
const retryAfter = "2"

func (p problem) write(w http.ResponseWriter) {
	writeProblem(w, p.Status, p)
}

func writeProblem(w http.ResponseWriter, status int, document any) {
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	body, _ := json.Marshal(document) // strings and numbers only
	write(w, status, "application/problem+json", append(body, '\n'))
}
