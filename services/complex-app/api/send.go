package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"keda-p2/services/contract"
)

const (
	// maxRequestBytes bounds the query and the body, as they are sent.
	maxRequestBytes = contract.MaxEventBytes
	// maxKeyBytes is the longest message-id that AMQP carries.
	maxKeyBytes = 255
	// readTimeout bounds a body that is sent slowly.
	readTimeout = 10 * time.Second
)

// accepted is the answer to an event that RabbitMQ has confirmed.
type accepted struct {
	ID string `json:"id"`
	contract.Event
}

// send publishes one event: POST /send with name and content in the query, in a
// form or in a JSON object. 202 means that RabbitMQ has stored it.
func (a *api) send(w http.ResponseWriter, r *http.Request) error {
	event, err := readEvent(w, r)
	if err != nil {
		return err
	}
	id, err := messageID(r)
	if err != nil {
		return err
	}
	message := contract.Message{Event: event, ID: id, SentAt: time.Now()}
	// RabbitMQ gets the event whether or not the client still waits for the answer
	confirmed, err := a.publisher.Send(context.WithoutCancel(r.Context()), message)
	if err == nil {
		err = confirmed()
	}
	if err != nil {
		return unsent{id, err}
	}
	a.view.Accepted(message)
	a.log.DebugContext(r.Context(), "accepted an event", "id", id)
	return writeJSON(w, http.StatusAccepted, accepted{ID: id, Event: event})
}

// readEvent takes the event from the body, or from the query when there is no
// body. Both at once would leave one of them out, and is an error.
func readEvent(w http.ResponseWriter, r *http.Request) (contract.Event, error) {
	if len(r.URL.RawQuery) > maxRequestBytes {
		return contract.Event{}, tooLarge()
	}
	if r.ContentLength == 0 {
		return parseForm(r.URL.RawQuery)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	if err == nil {
		// all of it is here, and the deadline would end the wait for the confirm
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return contract.Event{}, tooLarge()
	case err != nil:
		return contract.Event{}, badRequest("the body could not be read to its end")
	case len(body) == 0:
		return parseForm(r.URL.RawQuery)
	case r.URL.RawQuery != "":
		return contract.Event{}, badRequest("give the event in the query or in the body, not in both")
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return contract.Event{}, errMediaType
	}
	switch mediaType {
	case "application/json":
		return contract.Decode(body)
	case "application/x-www-form-urlencoded":
		return parseForm(string(body))
	}
	return contract.Event{}, errMediaType
}

func tooLarge() error {
	return badRequest(fmt.Sprintf("the event is longer than %d bytes", maxRequestBytes))
}

func parseForm(encoded string) (contract.Event, error) {
	values, err := parseParameters(encoded, "name", "content")
	if err != nil {
		return contract.Event{}, err
	}
	event := contract.Event{Name: values.Get("name"), Content: values.Get("content")}
	return event, event.Validate()
}

// parseParameters reads a URL-encoded query or form. What is not allowed, or
// given twice, is an error: passed over, it would be lost without a word.
func parseParameters(encoded string, allowed ...string) (url.Values, error) {
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return nil, badRequest("not URL-encoded: " + err.Error())
	}
	for field, all := range values {
		switch {
		case strings.HasPrefix(field, "{"):
			return nil, badRequest("this looks like JSON; send it with Content-Type: application/json")
		case !slices.Contains(allowed, field):
			return nil, badRequest(fmt.Sprintf("unknown field %.80q; only %s are allowed", field, strings.Join(allowed, ", ")))
		case len(all) > 1:
			return nil, badRequest(field + " is given more than once")
		}
	}
	return values, nil
}

// messageID returns the request's Idempotency-Key, so that a client can send an
// event again and have it stored once, or else a new UUIDv7. The key may stand
// in quotes, as the header's IETF draft writes it.
func messageID(r *http.Request) (string, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return newID()
	}
	key := keys[0]
	if unquoted, ok := strings.CutPrefix(key, `"`); ok {
		key = strings.TrimSuffix(unquoted, `"`)
	}
	if len(keys) > 1 || !fitID(key) {
		return "", badRequest("Idempotency-Key " + idRule)
	}
	return key, nil
}

func newID() (string, error) {
	id, err := uuid.NewV7()
	return id.String(), err
}

// idRule says what fitID allows.
var idRule = fmt.Sprintf("must be one value of 1 to %d visible ASCII characters without quotes and backslashes", maxKeyBytes)

func fitID(id string) bool {
	unfit := func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }
	return id != "" && len(id) <= maxKeyBytes && !strings.ContainsFunc(id, unfit)
}
