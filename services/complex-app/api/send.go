package api

import (
	"cmp"
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

// handleSend publishes one event: POST /send with name and content in the query, in a
// form or in a JSON object. 202 means that RabbitMQ has stored it.
func (a *api) handleSend(w http.ResponseWriter, r *http.Request) error {
	event, err := readEvent(w, r)
	if err != nil {
		return err
	}
	id, err := idempotencyKey(r, maxKeyBytes)
	if err != nil {
		return err
	}
	id = cmp.Or(id, contract.NewID())
	if err := a.publish(r.Context(), contract.Message{Event: event, ID: id, SentAt: time.Now()}); err != nil {
		return err
	}
	a.log.DebugContext(r.Context(), "accepted an event", "id", id)
	return writeJSON(w, http.StatusAccepted, jsonType, accepted{ID: id, Event: event})
}

// publish returns nil once RabbitMQ has stored the message, and a problem otherwise. It
// goes on when the client no longer waits for the answer.
func (a *api) publish(ctx context.Context, m contract.Message) error {
	ctx = context.WithoutCancel(ctx)
	err := a.publisher.Publish(ctx, m)
	a.rabbitMQ.note(ctx, err)
	if err != nil {
		return unsent(m.ID, err)
	}
	return nil
}

// readEvent takes the event from the body, or from the query when there is no body.
func readEvent(w http.ResponseWriter, r *http.Request) (contract.Event, error) {
	input, mediaType, err := readInput(w, r, maxRequestBytes, jsonType, formType)
	if err != nil {
		return contract.Event{}, err
	}
	if mediaType == jsonType {
		return contract.Decode(input)
	}
	values, err := parseParameters(string(input), "name", "content")
	if err != nil {
		return contract.Event{}, err
	}
	event := contract.Event{Name: values.Get("name"), Content: values.Get("content")}
	return event, event.Validate()
}
