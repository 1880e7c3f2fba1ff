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

// Claim asks an empty queue again after these pauses, which grow: a Job's message is
// there at once, while a worker that stays may wait for a long time.
const (
	minPoll = 50 * time.Millisecond
	maxPoll = time.Second
)

// Consumer claims messages one at a time. It is for one goroutine.
type Consumer struct {
	cfg      Config
	conn     *amqp.Connection
	ch       *amqp.Channel
	returned <-chan amqp.Return
}

// Delivery is a claimed message. RabbitMQ keeps it for this consumer until one of
// Ack, Retry, Release and DeadLetter, and gives it to another as soon as the
// connection is lost.
type Delivery struct {
	raw amqp.Delivery
	c   *Consumer
}

// Connect opens a connection and declares the queue. The name is the connection's, as
// RabbitMQ's management page shows it.
func Connect(ctx context.Context, c Config, name string) (*Consumer, error) {
	conn, ch, err := open(ctx, c, name)
	if err != nil {
		return nil, err
	}
	return &Consumer{
		cfg: c, conn: conn, ch: ch,
		// room for the return of the one message that publish waits for: the
		// library puts it in here before it reads the confirm
		returned: ch.NotifyReturn(make(chan amqp.Return, 1)),
	}, nil
}

// Claim takes one message, waiting for it up to the given time. It uses basic.get:
// a subscription would get the next message as soon as this one is acknowledged.
func (c *Consumer) Claim(ctx context.Context, wait time.Duration) (*Delivery, error) {
	deadline := time.After(wait)
	for pause := minPoll; ; pause = min(2*pause, maxPoll) {
		if ctx.Err() != nil { // told to stop: take no message any more
			return nil, context.Cause(ctx)
		}
		raw, ok, err := get(c.conn, c.ch, c.cfg.Queue)
		if err != nil {
			return nil, c.cfg.explain(err)
		}
		if ok && raw.MessageId == "" {
			if err := c.giveID(ctx, raw); err != nil {
				return nil, err
			}
			continue
		}
		if ok {
			return &Delivery{raw: raw, c: c}, nil
		}
		select {
		case <-time.After(pause):
		case <-deadline:
			return nil, ErrEmpty
		case <-ctx.Done(): // the loop returns the cause
		}
	}
}

// get takes a message out of a queue, or closes the connection when no answer comes.
func get(conn *amqp.Connection, ch *amqp.Channel, queue string) (d amqp.Delivery, ok bool, err error) {
	late := time.AfterFunc(answerTimeout, func() { _ = conn.CloseDeadline(time.Now()) })
	d, ok, err = ch.Get(queue, false)
	if !late.Stop() {
		err = errNoAnswer
	}
	if err != nil {
		err = fmt.Errorf("get from %s: %w", queue, err)
	}
	return d, ok, err
}

// giveID replaces a message of another program that has no message-id, by which a
// redelivery is told from a new message. A crash before the Ack leaves two messages,
// and so two records: without an id nobody can tell that they are one.
func (c *Consumer) giveID(ctx context.Context, raw amqp.Delivery) error {
	m := republish(raw)
	m.MessageId = contract.NewID()
	if err := c.publish(ctx, c.cfg.Queue, m); err != nil {
		return fmt.Errorf("give a message an id: %w", err)
	}
	return raw.Ack(false)
}

// Lost returns a channel that yields when the connection is lost. A claimed message
// then goes to another consumer.
func (c *Consumer) Lost() <-chan *amqp.Error { return c.ch.NotifyClose(make(chan *amqp.Error, 1)) }

// Close closes the connection. RabbitMQ answers it after everything sent before, so
// nil also means that an Ack, a Retry, a Release or a DeadLetter has arrived.
func (c *Consumer) Close() error { return c.conn.CloseDeadline(time.Now().Add(closeTimeout)) }

// Message decodes the delivery. After a contract.ErrInvalid the message can never be
// processed; its id, time and trace are there all the same.
func (d *Delivery) Message() (contract.Message, error) { return decode(d.raw) }

// Attempt returns how many times the message has been tried, this one included. A
// redriven message counts on.
func (d *Delivery) Attempt() int { return attempt(d.raw) }

// LastAttempt reports whether RabbitMQ would give the message up after a Retry. The
// worker does it first, so that the dead letter says why.
func (d *Delivery) LastAttempt() bool { return attemptHere(d.raw) >= d.c.cfg.MaxAttempts }

// Ack removes the message from the queue.
func (d *Delivery) Ack() error { return d.raw.Ack(false) }

// Retry puts the message back after a failed attempt. RabbitMQ 4.3 delivers it again
// after a pause that grows with each attempt, older versions at once.
func (d *Delivery) Retry() error { return d.raw.Reject(true) }

// Release puts the message back at once when this consumer cannot go on for reasons
// that are not the message's. RabbitMQ 4.3 does not count the attempt, older
// versions do.
func (d *Delivery) Release() error { return d.raw.Nack(false, true) }

// DeadLetter moves the message to the dead-letter queue with its reason. It is
// published there before it is removed here: when the worker dies in between there
// are two copies with one id, and never none.
func (d *Delivery) DeadLetter(ctx context.Context, reason, job string) error {
	if err := d.c.publish(ctx, d.c.cfg.DeadQueue(), bury(d.raw, reason, job)); err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	return d.Ack()
}

// publish puts one message into a queue and waits for its confirm, at most answerTimeout.
// Do not use the consumer after it has failed.
func (c *Consumer) publish(ctx context.Context, key string, m amqp.Publishing) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	confirmation, err := c.ch.PublishWithDeferredConfirm("", key, true, false, m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	switch acked, err := confirmation.WaitContext(ctx); {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnconfirmed, context.Cause(ctx))
	case !acked:
		return ErrUnconfirmed
	case len(c.returned) > 0:
		return fmt.Errorf("%w: the queue %s is gone", ErrUnavailable, key)
	}
	return nil
}
