package queue

import (
	"fmt"
	"maps"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract"
)

// The wire format: an event is the body, as JSON. Its id is the property message-id,
// its time the property timestamp, which has whole seconds, and more exactly a header.
// The W3C trace context is two more headers.
const (
	sentAtHeader = "sent-at-ms" // Unix time in milliseconds
	// attemptsBefore holds the attempts that a redriven message had before.
	attemptsBefore = "attempts-before"
	// deliveryCount is set by RabbitMQ: how many earlier deliveries count as attempts.
	deliveryCount = "x-delivery-count"
	acquiredCount = "x-acquired-count" // RabbitMQ 4.3: how many there were in all

	// A worker that gives a message up adds these. A message that RabbitMQ gave up
	// has RabbitMQ's own header x-death.
	deadReason   = "dead-letter-reason"
	deadAttempts = "dead-letter-attempts"
	deadJob      = "dead-letter-job"
	deadTime     = "dead-letter-time" // RFC 3339
)

// shownBytes is how much of a dead letter's body and of its reason is listed: a thousand
// whole ones would need more memory than complex-app has. And a longer reason may not fit
// into the frame that RabbitMQ takes a message's headers in.
const shownBytes = 1 << 10

// maxJobBytes is the longest name of a pod.
const maxJobBytes = 253

// encode returns a message as it is sent.
func encode(m contract.Message) (amqp.Publishing, error) {
	body, err := m.Encode()
	if err != nil {
		return amqp.Publishing{}, err
	}
	headers := amqp.Table{sentAtHeader: m.SentAt.UnixMilli()}
	for name, value := range m.Trace {
		headers[name] = value
	}
	return amqp.Publishing{
		MessageId:    m.ID,
		Timestamp:    m.SentAt,
		Headers:      headers,
		ContentType:  "application/json",
		DeliveryMode: amqp.Persistent,
		Body:         body,
	}, nil
}

// decode returns the message that was received. After an ErrInvalid all but the
// event is there.
func decode(d amqp.Delivery) (contract.Message, error) {
	m := contract.Message{ID: d.MessageId, SentAt: sentAt(d), Trace: map[string]string{}}
	for _, name := range []string{"traceparent", "tracestate"} {
		if value := header[string](d, name); value != "" {
			m.Trace[name] = value
		}
	}
	var err error
	m.Event, err = contract.DecodeMessage(d.Body)
	return m, err
}

// attempt numbers a delivery, from 1 and on through redrives. Deliveries that were
// given back with Release are not counted where RabbitMQ can tell (4.3 and later).
func attempt(d amqp.Delivery) int { return int(header[int64](d, attemptsBefore)) + attemptHere(d) }

// attemptHere is attempt since the message was sent or redriven, which is what
// RabbitMQ's delivery limit counts.
func attemptHere(d amqp.Delivery) int { return int(header[int64](d, deliveryCount)) + 1 }

// republish returns a copy of a message. It leaves out the counters of the queue that the
// message leaves, the headers that make RabbitMQ send copies to further queues, the
// expiration, which would make it vanish, and the user-id, which RabbitMQ refuses when it
// is not the publisher's.
func republish(d amqp.Delivery) amqp.Publishing {
	headers := amqp.Table{}
	maps.Copy(headers, d.Headers)
	for _, name := range []string{acquiredCount, deliveryCount, "CC", "BCC"} {
		delete(headers, name)
	}
	return amqp.Publishing{
		Headers: headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding,
		DeliveryMode: amqp.Persistent, Priority: d.Priority, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo,
		MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId, Body: d.Body,
	}
}

// bury returns a message as a dead letter.
func bury(d amqp.Delivery, reason, job string) amqp.Publishing {
	m := republish(d)
	m.Headers[deadReason] = contract.Shorten(reason, shownBytes)
	m.Headers[deadAttempts] = int64(attempt(d))
	m.Headers[deadJob] = job
	m.Headers[deadTime] = time.Now().UTC().Format(time.RFC3339)
	return m
}

// revive returns a dead letter as a message again, whose attempts go on.
func revive(d amqp.Delivery, maxAttempts int) amqp.Publishing {
	m := republish(d)
	maps.DeleteFunc(m.Headers, func(name string, _ any) bool {
		return strings.HasPrefix(name, "dead-letter-") || name == "x-death" || strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-")
	})
	m.Headers[attemptsBefore] = int64(readDeadLetter(d, maxAttempts).Attempts)
	return m
}

// DeadLetter is a message that was given up.
type DeadLetter struct {
	ID       string    `json:"id"`
	Body     string    `json:"body"` // its beginning; bytes that are not UTF-8 are replaced
	Reason   string    `json:"reason"`
	Attempts int       `json:"attempts"`
	Job      string    `json:"job"` // the last one, when it is known
	SentAt   time.Time `json:"sentAt,omitzero"`
	DeadAt   time.Time `json:"deadAt,omitzero"`
}

func readDeadLetter(d amqp.Delivery, maxAttempts int) DeadLetter {
	body := string(d.Body[:min(len(d.Body), shownBytes)])
	dead := DeadLetter{ID: d.MessageId, Body: strings.ToValidUTF8(body, "\uFFFD"), SentAt: sentAt(d)}
	if reason := header[string](d, deadReason); reason != "" { // a worker gave it up
		dead.Reason = contract.Shorten(reason, shownBytes)
		dead.Attempts = int(header[int64](d, deadAttempts))
		dead.Job = contract.Shorten(header[string](d, deadJob), maxJobBytes)
		dead.DeadAt, _ = time.Parse(time.RFC3339, header[string](d, deadTime))
		return dead
	}
	// RabbitMQ did, unless somebody has put it there. Its counters have gone on since,
	// with every look.
	before := int(header[int64](d, attemptsBefore))
	dead.Reason = contract.Shorten(header[string](d, "x-first-death-reason"), shownBytes)
	switch dead.Reason {
	case "":
	case "delivery_limit":
		dead.Reason, dead.Attempts = fmt.Sprintf("delivered %d times, or fewer by a policy's delivery-limit, and never acknowledged: its worker died or was stopped, unless its record has an error", maxAttempts), before+maxAttempts
	default:
		dead.Attempts = before + 1
	}
	if deaths := header[[]any](d, "x-death"); len(deaths) > 0 {
		if death, ok := deaths[0].(amqp.Table); ok {
			dead.DeadAt, _ = death["time"].(time.Time)
		}
	}
	return dead
}

// header returns the zero value for a header that is missing or of another type.
func header[T any](d amqp.Delivery, name string) T {
	value, _ := d.Headers[name].(T)
	return value
}

// sentAt returns when the message was sent, or the zero time. A time that JSON cannot
// show would break every list that contains it: another program may have put
// milliseconds into the property, which has seconds.
func sentAt(d amqp.Delivery) time.Time {
	sent := d.Timestamp.UTC()
	if ms := header[int64](d, sentAtHeader); ms != 0 {
		sent = time.UnixMilli(ms).UTC()
	}
	if sent.Year() < 1 || sent.Year() > 9999 {
		return time.Time{}
	}
	return sent
}
