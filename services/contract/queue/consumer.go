package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract"
)

// ErrEmpty is returned by Claim when no message came in time.
var ErrEmpty = errors.New("the queue is empty")

// Headers of a dead letter that a worker gave up. Those that the broker gave up
// after MaxAttempts deliveries carry its own x-death header.
const (
	HeaderReason   = "dead-letter-reason"
	HeaderAttempts = "dead-letter-attempts"
	HeaderJob      = "dead-letter-job"
	HeaderTime     = "dead-letter-time" // RFC 3339
)

// The broker's counters of a redelivered message. RabbitMQ 4 counts every
// delivery in the first; the second counts those that go towards the delivery
// limit, and is all that 3.x has.
const (
	acquiredCount = "x-acquired-count"
	deliveryCount = "x-delivery-count"
)

// Claim asks an empty queue again after these pauses, which grow: a Job's
// message is there at once, a worker that stays may wait for long.
const (
	minPoll = 50 * time.Millisecond
	maxPoll = time.Second
)

// Consumer claims messages one at a time.
type Consumer struct {
	cfg      Config
	conn     *amqp.Connection
	ch       *amqp.Channel
	lost     <-chan *amqp.Error
	returned <-chan amqp.Return
}

// Delivery is a claimed message. RabbitMQ keeps it for this consumer until one
// of Ack, Return and DeadLetter, and gives it to another as soon as the
// connection is lost.
type Delivery struct {
	// Attempt counts this message's deliveries from 1.
	Attempt int
	raw     amqp.Delivery
	c       *Consumer
}

// Connect opens a connection and declares the queue. The name is the
// connection's, as RabbitMQ's management page shows it.
func Connect(ctx context.Context, c Config, name string) (*Consumer, error) {
	conn, err := Dial(ctx, c, name)
	if err != nil {
		return nil, err
	}
	// the calls below know no context: closing the connection ends them
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
	defer stop()
	ch, err := openChannel(conn, c)
	if err != nil {
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
		return nil, err
	}
	return &Consumer{
		cfg: c, conn: conn, ch: ch,
		lost: ch.NotifyClose(make(chan *amqp.Error, 1)),
		// room for the return of the one message that publish waits for: the
		// library puts it in here before it reads the confirm
		returned: ch.NotifyReturn(make(chan amqp.Return, 1)),
	}, nil
}

// Claim takes one message, waiting for it up to the given time. It uses
// basic.get, since a subscription would be handed the next message as soon as
// this one is acknowledged.
func (c *Consumer) Claim(ctx context.Context, wait time.Duration) (*Delivery, error) {
	deadline := time.After(wait)
	for pause := minPoll; ; pause = min(2*pause, maxPoll) {
		// whoever is told to stop takes no message any more
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		raw, ok, err := c.ch.Get(c.cfg.Queue, false)
		if err != nil {
			return nil, fmt.Errorf("get from %s: %w", c.cfg.Queue, err)
		}
		if ok {
			return &Delivery{Attempt: attempt(raw), raw: raw, c: c}, nil
		}
		select {
		case <-time.After(pause):
		case <-deadline:
			return nil, ErrEmpty
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Lost ends when the connection does. A claimed message is then no longer this
// consumer's: another one gets it.
func (c *Consumer) Lost() <-chan *amqp.Error { return c.lost }

// Close closes the connection. RabbitMQ answers it after all that was sent
// before, so nil also means that an Ack, a Return or a DeadLetter has arrived.
func (c *Consumer) Close() error { return c.conn.CloseDeadline(time.Now().Add(closeTimeout)) }

// Message decodes the delivery. The error is a contract.ErrInvalid when the
// message can never be processed.
func (d *Delivery) Message() (contract.Message, error) {
	if d.raw.MessageId == "" {
		return contract.Message{}, fmt.Errorf("%w: the message has no message-id property, by which a redelivery is told from a new message", contract.ErrInvalid)
	}
	event, err := contract.Decode(d.raw.Body)
	if err != nil {
		return contract.Message{}, err
	}
	return contract.Message{Event: event, ID: d.raw.MessageId, SentAt: sentAt(d.raw)}, nil
}

// ID returns the message's id, which may be empty.
func (d *Delivery) ID() string { return d.raw.MessageId }

// SentAt returns when the message was sent, or the zero time.
func (d *Delivery) SentAt() time.Time { return sentAt(d.raw) }

// Header returns a header's text, or "".
func (d *Delivery) Header(name string) string { return header[string](d.raw, name) }

// Ack removes the message from the queue.
func (d *Delivery) Ack() error { return d.raw.Ack(false) }

// Return puts the message back for another consumer. When it counts, it goes
// towards MaxAttempts, as a lost connection does; else it does not, on RabbitMQ 4
// at least: 3.x counts it all the same.
func (d *Delivery) Return(counts bool) error {
	if counts {
		return d.raw.Reject(true)
	}
	return d.raw.Nack(false, true)
}

// DeadLetter moves the message to the dead-letter queue with its reason. It is
// published there before it is removed here: when the worker dies in between
// there are two copies with one id, and never none.
func (d *Delivery) DeadLetter(ctx context.Context, reason, job string) error {
	m := republish(d.raw)
	m.Headers[HeaderReason] = reason
	m.Headers[HeaderAttempts] = int64(d.Attempt)
	m.Headers[HeaderJob] = job
	m.Headers[HeaderTime] = time.Now().UTC().Format(time.RFC3339)
	if err := d.c.publish(ctx, d.c.cfg.DeadQueue(), m); err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	return d.Ack()
}

// publish puts one message into a queue and waits for its confirm. It is not
// for several goroutines, nor for use after it has failed.
func (c *Consumer) publish(ctx context.Context, key string, m amqp.Publishing) error {
	confirmation, err := c.ch.PublishWithDeferredConfirm("", key, true, false, m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	acked, err := confirmation.WaitContext(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	case !acked:
		return ErrUnconfirmed
	}
	select {
	case <-c.returned:
		return fmt.Errorf("%w: the queue %s is gone", ErrUnavailable, key)
	default:
		return nil
	}
}

// attempt reads the broker's counters, which exist from the first redelivery,
// and adds what a redriven message brings with it.
func attempt(d amqp.Delivery) int {
	return int(header[int64](d, attemptsHeader)+max(header[int64](d, acquiredCount), header[int64](d, deliveryCount))) + 1
}
