package api

import (
	"cmp"
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

var (
	errNoSuchPath  = problem{Status: http.StatusNotFound, Detail: "there is nothing at this path; POST /send takes an event, POST /send/batch many, GET /data answers with the records, /openapi.yaml describes all"}
	errWrongMethod = problem{Status: http.StatusMethodNotAllowed, Detail: "this path does not take this method; the Allow header names those that it takes"}
	errCrossOrigin = problem{Status: http.StatusForbidden, Detail: "a browser sent this for a page of another site; only this service's own page may"}
	errWrongHost   = problem{Status: http.StatusMisdirectedRequest, Detail: "the service does not answer under the name in the Host header; ALLOWED_HOSTS lists those under which it does"}
	errBusy        = problem{Status: http.StatusServiceUnavailable, Detail: "too many requests of this kind at a time; send it again later"}
)

// errStore means that MongoDB does not answer.
var errStore = errors.New("MongoDB is not available")

// answers maps errors that are no problem to answers; the first that matches counts. An
// empty detail is the error's own text. The others have texts that may name hosts, which
// are for the log.
var answers = []struct {
	err    error
	status int
	detail string
}{
	{contract.ErrInvalid, http.StatusBadRequest, ""},
	{records.ErrUnknown, http.StatusBadRequest, ""},
	{queue.ErrNoDeadLetter, http.StatusNotFound, ""},
	{queue.ErrCutShort, http.StatusServiceUnavailable, "not all dead letters were seen: the time was up, perhaps while others were at them, or their queue does not answer; ask again"},
	{errStore, http.StatusServiceUnavailable, "MongoDB is not available; ask again"},
	{queue.ErrUnavailable, http.StatusServiceUnavailable, "RabbitMQ is not available; ask again"},
	{queue.ErrUnconfirmed, http.StatusServiceUnavailable, "RabbitMQ did not confirm the event, which may have been accepted all the same; send it again with this id as its Idempotency-Key, so that it cannot count twice"},
}

// newProblem returns the answer to an error.
func newProblem(err error) problem {
	p := problem{Status: http.StatusInternalServerError, Detail: "internal error; see the server's log"}
	if !errors.As(err, &p) {
		for _, a := range answers {
			if errors.Is(err, a.err) {
				p.Status, p.Detail = a.status, cmp.Or(a.detail, err.Error())
				break
			}
		}
	}
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	return p
}

// unsent returns the answer for an event that was not accepted, or not for certain.
func unsent(id string, err error) error {
	p := newProblem(err)
	p.ID = id
	if errors.Is(err, queue.ErrUnavailable) {
		p.Detail = "RabbitMQ is not available and the event was not accepted; send it again"
	}
	return fmt.Errorf("%w: %w", p, err)
}
