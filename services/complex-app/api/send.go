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

// handleSend publishes one event: POST /send with name and content in the query, in a
// form or in a JSON object. 202 means that RabbitMQ has stored it.
func (a *api) handleSend(w http.ResponseWriter, r *http.Request) error {
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
	if err := a.publish(r.Context(), contract.Message{Event: event, ID: id, SentAt: time.Now()}); err != nil {
		return err
	}
	a.log.DebugContext(r.Context(), "accepted an event", "id", id)
	return writeJSON(w, http.StatusAccepted, jsonType, accepted{ID: id, Event: event})
}

// publish returns nil once RabbitMQ has stored the message, and an unsent otherwise. It
// goes on when the client no longer waits for the answer.
func (a *api) publish(ctx context.Context, m contract.Message) error {
	ctx = context.WithoutCancel(ctx)
	err := a.publisher.Publish(ctx, m)
	a.rabbitMQ.note(ctx, err)
	if err != nil {
		return unsent{m.ID, err}
	}
	return nil
}

// readEvent takes the event from the body, or from the query when there is no body.
// Both at once would leave one of them out, and is an error.
func readEvent(w http.ResponseWriter, r *http.Request) (contract.Event, error) {
	if len(r.URL.RawQuery) > maxRequestBytes {
		return contract.Event{}, tooLarge("query", maxRequestBytes)
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
