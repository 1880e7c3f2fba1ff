package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// pollInterval is how often Claim asks an empty queue.
const pollInterval = 100 * time.Millisecond

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
	ch, err := conn.Channel()
	if err == nil {
		err = declare(ch, c)
	}
	if err == nil {
		// for DeadLetter
		err = ch.Confirm(false)
	}
	if err != nil {
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
		return nil, err
	}
	return &Consumer{
		cfg: c, conn: conn, ch: ch,
		lost: ch.NotifyClose(make(chan *amqp.Error, 1)),
		// room for the one message that DeadLetter publishes: the library puts a
		// return in here before it reads the confirm
		returned: ch.NotifyReturn(make(chan amqp.Return, 1)),
	}, nil
}

// Claim takes one message, waiting for it up to the given time. It uses
// basic.get, since a subscription would be handed the next message as soon as
// this one is acknowledged.
func (c *Consumer) Claim(ctx context.Context, wait time.Duration) (*Delivery, error) {
	deadline := time.After(wait)
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		raw, ok, err := c.ch.Get(c.cfg.Queue, false)
		if err != nil {
			return nil, fmt.Errorf("get from %s: %w", c.cfg.Queue, err)
		}
		if ok {
			return &Delivery{Attempt: attempt(raw.Headers), raw: raw, c: c}, nil
		}
		select {
		case <-poll.C:
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
	sent := d.raw.Timestamp
	if ms, ok := d.raw.Headers[sentAtHeader].(int64); ok {
		sent = time.UnixMilli(ms)
	}
	return contract.Message{Event: event, ID: d.raw.MessageId, SentAt: sent}, nil
}

// ID returns the message's id, which may be empty.
func (d *Delivery) ID() string { return d.raw.MessageId }

// Ack removes the message from the queue.
func (d *Delivery) Ack() error { return d.raw.Ack(false) }

// Return puts the message back for another consumer.
func (d *Delivery) Return() error { return d.raw.Nack(false, true) }

// DeadLetter moves the message to the dead-letter queue with its reason. It is
// published there before it is removed here: when the worker dies in between
// there are two copies with one id, and never none.
func (d *Delivery) DeadLetter(ctx context.Context, reason, job string) error {
	m := d.raw
	headers := maps.Clone(m.Headers)
	if headers == nil {
		headers = amqp.Table{}
	}
	// the broker's own counters of the queue that the message leaves
	delete(headers, acquiredCount)
	delete(headers, deliveryCount)
	headers[HeaderReason] = reason
	headers[HeaderAttempts] = int64(d.Attempt)
	headers[HeaderJob] = job
	headers[HeaderTime] = time.Now().UTC().Format(time.RFC3339)
	confirmation, err := d.c.ch.PublishWithDeferredConfirm("", d.c.cfg.DeadQueue(), true, false, amqp.Publishing{
		MessageId: m.MessageId, Timestamp: m.Timestamp, Headers: headers, ContentType: m.ContentType,
		DeliveryMode: amqp.Persistent, Body: m.Body,
	})
	if err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	acked, err := confirmation.WaitContext(ctx)
	if err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	if !acked {
		return errors.New("dead letter: RabbitMQ did not confirm it")
	}
	select {
	case <-d.c.returned:
		return fmt.Errorf("dead letter: the queue %s is gone", d.c.cfg.DeadQueue())
	default:
		return d.Ack()
	}
}

// attempt reads the broker's counters, which exist from the first redelivery.
func attempt(headers amqp.Table) int {
	acquired, _ := headers[acquiredCount].(int64)
	delivered, _ := headers[deliveryCount].(int64)
	return int(max(acquired, delivered)) + 1
}
