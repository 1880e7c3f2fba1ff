package api

import (
	"context"
	"net/http"
	"time"

	"keda-p2/services/contract"
)

const (
	jsonType = "application/json"
	formType = "application/x-www-form-urlencoded"
)

// accepted is the answer to an event that RabbitMQ has confirmed.
type accepted struct {
	ID string `json:"id"`
	contract.Event
}

// send publishes one event: POST /send with name and content in the query, in a form
// or in a JSON object. 202 means that RabbitMQ has stored it.
func (a *api) send(w http.ResponseWriter, r *http.Request) error {
	event, err := readEvent(w, r)
	if err != nil {
		return err
	}
	id, err := idempotencyKey(r, maxKeyBytes)
	if err == nil && id == "" {
		id, err = newID()
	}
	if err != nil {
		return err
	}
	// RabbitMQ gets the event whether or not the client still waits for the answer
	ctx := context.WithoutCancel(r.Context())
	err = a.publisher.Publish(ctx, contract.Message{Event: event, ID: id, SentAt: time.Now()})
	a.rabbitMQ.note(err)
	if err != nil {
		return unsent{id, err}
	}
	a.log.DebugContext(ctx, "accepted an event", "id", id)
	return writeJSON(w, http.StatusAccepted, accepted{ID: id, Event: event})
}

// readEvent takes the event from the body, or from the query when there is no body.
// Both at once would leave one of them out, and is an error.
func readEvent(w http.ResponseWriter, r *http.Request) (contract.Event, error) {
	if len(r.URL.RawQuery) > maxRequestBytes {
		return contract.Event{}, tooLarge(maxRequestBytes)
	}
	body, mediaType, err := readBody(w, r, maxRequestBytes, jsonType, formType)
	switch {
	case err != nil:
		return contract.Event{}, err
	case body == nil:
		return parseForm(r.URL.RawQuery)
	case r.URL.RawQuery != "":
		return contract.Event{}, badRequest("give the event in the query or in the body, not in both")
	case mediaType == jsonType:
		return contract.Decode(body)
	default:
		return parseForm(string(body))
	}
}

func parseForm(encoded string) (contract.Event, error) {
	values, err := parseParameters(encoded, "name", "content")
	if err != nil {
		return contract.Event{}, err
	}
	event := contract.Event{Name: values.Get("name"), Content: values.Get("content")}
	return event, event.Validate()
}
