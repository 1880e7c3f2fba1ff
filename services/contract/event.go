// Package contract holds what complex-app and processor-job must agree on: the
// event here, the messages and queues of RabbitMQ in queue, the records of MongoDB
// in records, and the variables that both services read in config.
//
// A line belongs here when changing it for one service only would be noticed by
// the other. Both ends of each agreement live here, so that one test holds them
// together: the publisher and the consumer, the writer of a record and its readers.
package contract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// MaxEventBytes bounds an event: its name and content together, in bytes.
const MaxEventBytes = 64 << 10

// ErrInvalid marks an event that can never be processed, however often it is
// tried. The error's text tells the sender what is wrong.
var ErrInvalid = errors.New("invalid event")

// Event is the body of a message, as JSON: {"name":"…","content":"…"}.
type Event struct {
	Name    string `json:"name"`
	Content string `json:"content"`
}

// Message is an event on its way through RabbitMQ.
type Message struct {
	Event
	// ID names the event for ever: every delivery of the message carries the same
	// one, and it is the record's id. Use it to make repeated work harmless.
	ID     string
	SentAt time.Time // zero when the sender did not say
	// Trace holds the W3C trace context headers of the span that sent the message.
	Trace map[string]string
}

// NewID returns an id for a message.
func NewID() string { return uuid.Must(uuid.NewV7()).String() } // it fails only without randomness, and then so does Go

// Shorten returns the text's first bytes as valid UTF-8, and "…" for the rest. The result
// does not keep all of the text in memory.
func Shorten(text string, maxBytes int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxBytes], "") + "…"
}

// Validate returns an ErrInvalid when the event has no name, is not UTF-8 or is
// longer than MaxEventBytes. An empty content is valid.
func (e Event) Validate() error {
	switch {
	case e.Name == "":
		return fmt.Errorf("%w: name is missing or empty", ErrInvalid)
	case !utf8.ValidString(e.Name):
		return fmt.Errorf("%w: name is not valid UTF-8", ErrInvalid)
	case !utf8.ValidString(e.Content):
		return fmt.Errorf("%w: content is not valid UTF-8", ErrInvalid)
	case len(e.Name)+len(e.Content) > MaxEventBytes:
		return fmt.Errorf("%w: name and content have %d bytes, at most %d are allowed",
			ErrInvalid, len(e.Name)+len(e.Content), MaxEventBytes)
	}
	return nil
}

// Encode returns the event as JSON.
func (e Event) Encode() ([]byte, error) { return json.Marshal(e) }

// Decode reads one valid event from a request. An unknown field is an error:
// a misspelt one would be lost silently.
func Decode(body []byte) (Event, error) {
	return decode(body, json.RejectUnknownMembers(true))
}

// DecodeMessage reads one valid event from a message. It ignores unknown fields: a
// producer that was upgraded first must not fill the dead-letter queue.
func DecodeMessage(body []byte) (Event, error) {
	return decode(body)
}

// decode reads exactly one JSON value. The library refuses duplicate names,
// names in another case, invalid UTF-8 and half surrogate pairs, all of which
// encoding/json would change or drop silently. A byte order mark is ignored, as
// RFC 8259 allows.
func decode(body []byte, options ...json.Options) (e Event, err error) {
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	if err := json.Unmarshal(body, &e, options...); err != nil {
		return Event{}, fmt.Errorf("%w: %s", ErrInvalid, explain(err))
	}
	return e, e.Validate()
}

// explain describes a decoding error without naming a Go type.
func explain(err error) string {
	var meaning *json.SemanticError
	var syntax *jsontext.SyntacticError
	switch {
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &meaning):
		return fmt.Sprintf("unknown field %.80q; only name and content are allowed", meaning.JSONPointer.LastToken())
	case errors.As(err, &meaning) && meaning.JSONPointer != "":
		return fmt.Sprintf("%.80s is not a JSON string", meaning.JSONPointer.LastToken())
	case errors.As(err, &meaning):
		return `not a JSON object such as {"name":"…","content":"…"}`
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return fmt.Sprintf("%.80s is given more than once", syntax.JSONPointer.LastToken())
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the JSON ends too early"
	case errors.As(err, &syntax):
		return fmt.Sprintf("not JSON: %.200s at byte %d", syntax.Err, syntax.ByteOffset)
	}
	return "not JSON"
}
