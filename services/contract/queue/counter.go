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
		if c.conn, c.ch, err = open(ctx, c.Config, c.Name); err != nil {
			return n, err
		}
	}
	conn := c.conn
	defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })()
	for name, count := range map[string]*int{c.Config.Queue: &n.Ready, c.Config.DeadQueue(): &n.Dead} {
		q, err := c.ch.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			c.Close()
			return n, err
		}
		*count = q.Messages
	}
	return n, nil
}

// Close closes the connection. Count opens another one.
func (c *Counter) Close() {
	if c.conn != nil {
		_ = c.conn.CloseDeadline(time.Now().Add(closeTimeout))
		c.conn = nil
	}
}
