package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// attemptsHeader carries a redriven message's attempts so far.
	attemptsHeader = "attempts-before"
	// lockPause is how often a lock that somebody else holds is tried.
	lockPause = 100 * time.Millisecond
	// returnTimeout bounds the wait for RabbitMQ to have given messages back.
	returnTimeout = 5 * time.Second
	// shownBytes is how much of a body is listed: a thousand whole ones would be
	// more than complex-app's memory.
	shownBytes = 4 << 10
)

// ErrNoDeadLetter is returned by Redrive when there is none with the given id.
var ErrNoDeadLetter = errors.New("there is no dead letter with this id")

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

// DeadLetterQueue looks at dead letters and sends them back. Each call uses a
// connection of its own.
type DeadLetterQueue struct{ Config Config }

// List returns up to limit dead letters, the oldest first, and leaves them
// where they are.
func (q DeadLetterQueue) List(ctx context.Context, limit int) ([]DeadLetter, error) {
	found := []DeadLetter{}
	err := q.visit(ctx, limit, func(_ *Consumer, d amqp.Delivery) (bool, error) {
		found = append(found, deadLetter(d))
		return false, nil
	})
	return found, err
}

// Redrive sends the dead letter with the given id back to the queue, or all of
// them when the id is empty, and returns how many it sent. Each is confirmed in
// the queue before it is removed here: when this is interrupted, one message may
// be in both, under one id, which is one record all the same.
func (q DeadLetterQueue) Redrive(ctx context.Context, id string) (int, error) {
	redriven := 0
	err := q.visit(ctx, -1, func(consumer *Consumer, d amqp.Delivery) (bool, error) {
		if id != "" && d.MessageId != id {
			return false, nil
		}
		if err := consumer.publish(ctx, q.Config.Queue, revive(d)); err != nil {
			return false, err
		}
		redriven++
		return true, nil
	})
	if err == nil && id != "" && redriven == 0 {
		err = fmt.Errorf("%w: %s", ErrNoDeadLetter, id)
	}
	return redriven, err
}

// visit shows f every dead letter that is there now, or the first limit of them
// when that is not negative, and removes those for which f returns true. AMQP
// cannot look at a message without taking it, so the others are given back at
// the end, and a lock keeps a second visitor from missing them meanwhile.
func (q DeadLetterQueue) visit(ctx context.Context, limit int, f func(*Consumer, amqp.Delivery) (bool, error)) error {
	name := q.Config.DeadQueue()
	consumer, err := Connect(ctx, q.Config, "dead letters")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	// frees the lock, and gives back what was not removed if that is still to do
	defer func() { _ = consumer.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = consumer.conn.CloseDeadline(time.Now()) })
	defer stop()
	if err := lock(ctx, consumer.conn, name+".lock"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	waiting, err := consumer.ch.QueueDeclarePassive(name, true, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	left, held := waiting.Messages, 0
	// no more than were there: a message that f sends back may die again
	for n := 0; n < waiting.Messages && n != limit; n++ {
		d, ok, err := consumer.ch.Get(name, false)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if !ok {
			break
		}
		held++
		remove, err := f(consumer, d)
		if err != nil {
			return err
		}
		if remove {
			if err := d.Ack(false); err != nil {
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			left--
			held--
		}
	}
	if held == 0 {
		return nil
	}
	if err := consumer.ch.Nack(0, true, true); err != nil { // all of them
		return nil // the connection is lost, and RabbitMQ gives them back by itself
	}
	// The next visitor would miss what is still on its way back.
	for deadline := time.After(returnTimeout); ; {
		waiting, err := consumer.ch.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil || waiting.Messages >= left {
			return nil
		}
		select {
		case <-time.After(lockPause):
		case <-deadline:
			return nil
		}
	}
}

// lock waits until this connection alone has the exclusive queue of the given
// name. RabbitMQ frees it when the connection ends, however it ends.
func lock(ctx context.Context, conn *amqp.Connection, name string) error {
	for {
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		_, err = ch.QueueDeclare(name, false, true, true, false, nil)
		var held *amqp.Error
		if err == nil || !errors.As(err, &held) || held.Code != amqp.ResourceLocked {
			return err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return fmt.Errorf("another visitor holds %s: %w", name, context.Cause(ctx))
		}
	}
}

func deadLetter(d amqp.Delivery) DeadLetter {
	body := string(d.Body[:min(len(d.Body), shownBytes)])
	dead := DeadLetter{ID: d.MessageId, Body: strings.ToValidUTF8(body, "\uFFFD"), SentAt: sentAt(d)}
	before := header[int64](d, attemptsHeader)
	if reason := header[string](d, HeaderReason); reason != "" { // a worker gave it up
		dead.Reason = reason
		dead.Attempts = int(header[int64](d, HeaderAttempts))
		dead.Job = header[string](d, HeaderJob)
		dead.DeadAt, _ = time.Parse(time.RFC3339, header[string](d, HeaderTime))
		return dead
	}
	// The broker did. Its counters have gone on since, with every look.
	dead.Reason, dead.Attempts = header[string](d, "x-first-death-reason"), int(before)+1
	if dead.Reason == "delivery_limit" {
		dead.Reason, dead.Attempts = fmt.Sprintf("delivered %d times and never acknowledged: each time its worker died or was stopped", MaxAttempts), int(before)+MaxAttempts
	}
	if deaths := header[[]any](d, "x-death"); len(deaths) > 0 {
		if death, ok := deaths[0].(amqp.Table); ok {
			dead.DeadAt, _ = death["time"].(time.Time)
		}
	}
	return dead
}

// revive makes a dead letter a message again, without the marks of its death.
func revive(d amqp.Delivery) amqp.Publishing {
	m := republish(d)
	for name := range m.Headers {
		if strings.HasPrefix(name, "dead-letter-") || name == "x-death" || strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-") {
			delete(m.Headers, name)
		}
	}
	m.Headers[attemptsHeader] = int64(deadLetter(d).Attempts)
	return m
}

// republish copies a message, without the counters of the queue that it leaves,
// and without the headers that make RabbitMQ send copies to other queues.
func republish(d amqp.Delivery) amqp.Publishing {
	headers := maps.Clone(d.Headers)
	if headers == nil {
		headers = amqp.Table{}
	}
	for _, name := range []string{acquiredCount, deliveryCount, "CC", "BCC"} {
		delete(headers, name)
	}
	return amqp.Publishing{
		MessageId: d.MessageId, Timestamp: d.Timestamp, Headers: headers, ContentType: d.ContentType,
		DeliveryMode: amqp.Persistent, Body: d.Body,
	}
}

// header returns the zero value for a header that is missing or of another type.
func header[T any](d amqp.Delivery, name string) T {
	value, _ := d.Headers[name].(T)
	return value
}

// sentAt returns when the message was sent, or the zero time. A time that JSON
// cannot show would break every list with this message in it: another program
// may have put milliseconds into the property, which has seconds.
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
