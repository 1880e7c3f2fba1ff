package api

import (
	"errors"
	"fmt"
	"net/http"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// problem is the body of every error: a problem document (RFC 9457). As an error it is
// its own answer.
type problem struct {
	Type   string       `json:"type"`
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail"`
	ID     string       `json:"id,omitempty"`   // the id under which to send the event again
	Done   *int         `json:"done,omitempty"` // how many dead letters were removed all the same
	Batch  *batchAnswer `json:",embed"`         // of a batch that was read
}

func (p problem) Error() string { return p.Detail }

func badRequest(detail string) error {
	return problem{Status: http.StatusBadRequest, Detail: detail}
}

func tooLarge(what string, limit int64) error {
	return problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the %s is longer than %d bytes", what, limit)}
}

// unsent is an event that was not accepted, or not for certain.
type unsent struct {
	id string
	error
}

func (e unsent) Unwrap() error { return e.error }

var (
	errNoSuchPath  = errors.New("there is nothing at this path; POST /send takes an event, POST /send/batch many, GET /data answers with the records, /openapi.yaml describes all")
	errWrongMethod = errors.New("this path does not take this method; the Allow header names those that it takes")
	errCrossOrigin = errors.New("a browser sent this for a page of another site; only this service's own page may")
	errWrongHost   = errors.New("the service does not answer under the name in the Host header; ALLOWED_HOSTS lists those under which it does")
	errBusy        = errors.New("too many requests of this kind at a time; send it again later")
	errStore       = errors.New("MongoDB is not available")
)

// answers maps errors to answers; the first that matches counts. An empty detail is the
// error's own text. The others have texts that may name hosts, which are for the log.
var answers = []struct {
	err    error
	status int
	detail string
	unsent string // the detail for an unsent event, when it is another one
}{
	{err: contract.ErrInvalid, status: http.StatusBadRequest},
	{err: records.ErrUnknown, status: http.StatusBadRequest},
	{err: errCrossOrigin, status: http.StatusForbidden},
	{err: errNoSuchPath, status: http.StatusNotFound},
	{err: queue.ErrNoDeadLetter, status: http.StatusNotFound},
	{err: errWrongMethod, status: http.StatusMethodNotAllowed},
	{err: errWrongHost, status: http.StatusMisdirectedRequest},
	{err: errBusy, status: http.StatusServiceUnavailable},
	{err: queue.ErrCutShort, status: http.StatusServiceUnavailable, detail: "the time was up, perhaps while others were at the dead letters; ask again"},
	{err: errStore, status: http.StatusServiceUnavailable, detail: "MongoDB is not available; ask again"},
	{err: queue.ErrUnavailable, status: http.StatusServiceUnavailable, detail: "RabbitMQ is not available; ask again",
		unsent: "RabbitMQ is not available and the event was not accepted; send it again"},
	{err: queue.ErrUnconfirmed, status: http.StatusServiceUnavailable, detail: "RabbitMQ is not available; ask again",
		unsent: "RabbitMQ did not confirm the event, which may have been accepted all the same; send it again with this id as its Idempotency-Key, so that it cannot count twice"},
}

// newProblem returns the answer to an error.
func newProblem(err error) problem {
	p := problem{Status: http.StatusInternalServerError, Detail: "internal error; see the server's log"}
	var event unsent
	if errors.As(err, &event) {
		p.ID = event.id
	}
	if !errors.As(err, &p) {
		for _, a := range answers {
			if !errors.Is(err, a.err) {
				continue
			}
			p.Status, p.Detail = a.status, a.detail
			switch {
			case p.ID != "" && a.unsent != "":
				p.Detail = a.unsent
			case p.Detail == "":
				p.Detail = err.Error()
			}
			break
		}
	}
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	return p
}

// retryAfter goes with every 503, in seconds.
const retryAfter = "2"

func (p problem) write(w http.ResponseWriter) {
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	_ = writeJSON(w, p.Status, "application/problem+json", p) // strings and numbers only
}
