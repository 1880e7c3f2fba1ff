package queue

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Counts says how many messages are where. Those that a Job has claimed and not
// acknowledged are in neither: AMQP does not tell their number.
type Counts struct {
	Ready int // wait in the queue
	Dead  int // wait in the dead-letter queue, less those that somebody looks at
}

// Counter counts messages. It keeps one connection from the first Count on, as a
// new one each time would cost the broker more than the count. It is for one
// goroutine.
type Counter struct {
	Config Config
	Name   string // the connection's, as RabbitMQ's management page shows it

	conn *amqp.Connection
	ch   *amqp.Channel
}

// Count asks the broker, and connects first where that is needed. After an error
// the next call connects again, which also declares a queue that was deleted.
func (c *Counter) Count(ctx context.Context) (n Counts, err error) {
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return n, err
		}
	}
	defer c.endWith(ctx)()
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	for name, count := range map[string]*int{c.Config.Queue: &n.Ready, c.Config.DeadQueue(): &n.Dead} {
		q, err := c.ch.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			return n, err
		}
		*count = q.Messages
	}
	return n, nil
}

func (c *Counter) connect(ctx context.Context) error {
	conn, err := Dial(ctx, c.Config, c.Name)
	if err != nil {
		return err
	}
	c.conn = conn
	defer c.endWith(ctx)()
	if c.ch, err = openChannel(conn, c.Config); err != nil {
		c.Close()
	}
	return err
}

// endWith closes the connection when ctx ends, until it is told to stop: the
// library's calls know no context.
func (c *Counter) endWith(ctx context.Context) (stop func() bool) {
	conn := c.conn
	return context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
}

// Close closes the connection. Count opens another one.
func (c *Counter) Close() {
	if c.conn != nil {
		_ = c.conn.CloseDeadline(time.Now().Add(closeTimeout))
		c.conn = nil
	}
}
