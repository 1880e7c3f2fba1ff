package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// lockPause is how often a lock that somebody else holds is tried.
	lockPause = 100 * time.Millisecond
	// returnTimeout bounds the wait for RabbitMQ to have given messages back.
	returnTimeout = 5 * time.Second
)

// ErrNoDeadLetter is returned by Redrive when there is none with the given id.
var ErrNoDeadLetter = errors.New("there is no dead letter with this id")

// DeadLetterQueue looks at dead letters and sends them back. Each call uses a
// connection of its own.
type DeadLetterQueue struct{ Config Config }

// List returns up to limit dead letters, the oldest first, and leaves them
// where they are.
func (q DeadLetterQueue) List(ctx context.Context, limit int) ([]DeadLetter, error) {
	found := []DeadLetter{}
	err := q.visit(ctx, limit, func(_ *Consumer, d amqp.Delivery) (bool, error) {
		found = append(found, readDeadLetter(d, q.Config.MaxAttempts))
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
		if err := consumer.publish(ctx, q.Config.Queue, revive(d, q.Config.MaxAttempts)); err != nil {
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
	if err := lock(ctx, consumer.conn, q.Config.lockQueue()); err != nil {
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
