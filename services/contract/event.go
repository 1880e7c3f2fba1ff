// Package contract holds what complex-app and processor-job must agree on: the
// event here, RabbitMQ's topology in queue, MongoDB's records in records and
// the reading of variables in config.
package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxEventBytes bounds an event: its name and content together, in bytes.
const MaxEventBytes = 64 << 10

// ErrInvalid marks an event that can never be processed, however often it is
// tried. The error's text says what is wrong in words for whoever sent it.
var ErrInvalid = errors.New("invalid event")

// Event is the body of a message, as JSON: {"name":"…","content":"…"}.
type Event struct {
	Name    string `json:"name"`
	Content string `json:"content"`
}

// Message is an event on its way. ID and SentAt travel as the AMQP properties
// message-id and timestamp (whole seconds), and in a header with milliseconds.
type Message struct {
	Event
	ID     string
	SentAt time.Time
	// Trace are the W3C's headers of the span that sends the message. They stay
	// with it in the queue, as a dead letter and after a redrive.
	Trace map[string]string
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

// Encode returns the event as JSON. Characters such as < and & stay as they
// are: the body is read by programs, not by browsers.
func (e Event) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// JSON writes a character beyond U+FFFF as a pair of escapes. Half of a pair is no
// character, and encoding/json would replace it silently.
var (
	pair = regexp.MustCompile(`(?i)\\\\|\\ud[89ab]..\\ud[c-f]..`) // or an escaped backslash
	half = regexp.MustCompile(`(?i)\\ud[89a-f]`)                  // JSON's u is always a small one
)

// Decode reads one valid event from JSON, as Unmarshal does.
func Decode(body []byte) (Event, error) {
	var e Event
	if err := Unmarshal(body, &e, "name and content"); err != nil {
		return Event{}, err
	}
	return e, e.Validate()
}

// Unmarshal reads one JSON object into a struct whose fields are those named. It
// is strict, because whatever it passed over would be lost without a word: an
// unknown field, a second value, invalid UTF-8 or half a character is an
// ErrInvalid.
func Unmarshal(body []byte, into any, fields string) error {
	// encoding/json would replace invalid UTF-8 silently
	if !utf8.Valid(body) {
		return fmt.Errorf("%w: the JSON is not valid UTF-8", ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("%w: %s", ErrInvalid, explain(err, fields))
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: there is more after the JSON object", ErrInvalid)
	}
	if bytes.Contains(body, []byte(`\u`)) && half.Match(pair.ReplaceAll(body, []byte(" "))) {
		return fmt.Errorf(`%w: there is half a character, such as \ud83d without its other half`, ErrInvalid)
	}
	return nil
}

// explain puts a decoding error into words that name no Go type.
func explain(err error, fields string) string {
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return fmt.Sprintf("%s is a JSON %s, not a string", wrongType.Field, wrongType.Value)
	case errors.As(err, &wrongType):
		return fmt.Sprintf(`a JSON %s, not an object such as {"name":"…","content":"…"}`, wrongType.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the JSON ends too early"
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fmt.Sprintf("unknown field %.80s; only %s are allowed", field, fields)
	}
	return "not JSON: " + err.Error()
}
