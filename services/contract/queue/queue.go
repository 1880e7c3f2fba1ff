// Package queue is RabbitMQ as both services see it: the queue and its dead
// letters, a publisher that answers only once the broker has confirmed, and a
// consumer that claims a single message.
package queue

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract/config"
)

const (
	// MaxAttempts is how often a message is delivered before the broker moves
	// it to the dead-letter queue, not counting what Return says does not count.
	MaxAttempts = 5

	// A stalled connection is given up after three missed heartbeats.
	heartbeat = 5 * time.Second
	// handshakeTimeout bounds dialling with TLS and login; writeTimeout bounds
	// a write to a broker that has stopped reading, as it does in an alarm.
	handshakeTimeout = 5 * time.Second
	writeTimeout     = 5 * time.Second
	closeTimeout     = 5 * time.Second
)

// ErrTopology is returned when the broker has a queue of the same name with
// other arguments. Trying again does not help.
var ErrTopology = errors.New("the queue exists with other arguments")

// Config says where RabbitMQ is. Its variables begin with RABBITMQ_.
type Config struct {
	config.Server
	Port  string `default:"5672"`
	VHost string `default:"/"`
	Queue string `default:"task_queue"`
}

// Validate names every problem with the RABBITMQ_ variables.
func (c Config) Validate() error {
	problems := []error{c.Server.Validate("RABBITMQ", c.Port)}
	if c.User == "" && c.Password == "" {
		problems = append(problems, errors.New("RABBITMQ_USER: is empty; RabbitMQ needs a login"))
	}
	if c.VHost == "" {
		problems = append(problems, errors.New("RABBITMQ_VHOST: is empty; the default virtual host is /"))
	}
	if c.Queue == "" || len(c.DeadQueue()) > 255 {
		problems = append(problems, errors.New("RABBITMQ_QUEUE: give a name of 1 to 250 bytes"))
	}
	return errors.Join(problems...)
}

// DeadQueue names the queue of the messages that were given up.
func (c Config) DeadQueue() string { return c.Queue + ".dead" }

// Dial connects to RabbitMQ. The name is what its management page shows.
func Dial(ctx context.Context, c Config, name string) (*amqp.Connection, error) {
	tlsConfig, err := c.TLSConfig()
	if err != nil {
		return nil, err
	}
	uri := amqp.URI{Scheme: "amqp", Host: c.Host, Vhost: c.VHost}
	if c.TLS {
		uri.Scheme = "amqps"
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var stop func() bool
	conn, err := amqp.DialConfig(uri.String(), amqp.Config{
		// credentials go here and not into the URI, so they need no escaping
		SASL:            []amqp.Authentication{&amqp.PlainAuth{Username: c.User, Password: c.Password}},
		Vhost:           c.VHost,
		Heartbeat:       heartbeat,
		TLSClientConfig: tlsConfig,
		Properties:      amqp.Table{"connection_name": name},
		Dial: func(network, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(c.Host, c.Port))
			if err != nil {
				return nil, err
			}
			// the library knows no context: closing the socket ends its handshake
			stop = context.AfterFunc(ctx, func() { conn.Close() })
			return collect(conn), nil
		},
	})
	if stop != nil && !stop() {
		err = fmt.Errorf("no login within %s: %w", handshakeTimeout, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("RabbitMQ: %w", err)
	}
	return conn, nil
}

// openChannel opens a channel in confirm mode, on which the queue and its
// dead-letter queue have been made unless they were there. Whichever service comes
// first does it, with the same arguments.
func openChannel(conn *amqp.Connection, c Config) (*amqp.Channel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	dead := amqp.Table{
		amqp.QueueTypeArg: amqp.QueueTypeQuorum,
		// Whoever looks at a dead letter and gives it back counts as a delivery,
		// and RabbitMQ 4 drops a message after 20. Unlimited is -1 there, but on
		// 3.10 that drops the message at once: a limit that is never reached.
		"x-delivery-limit": 1_000_000_000,
	}
	main := amqp.Table{
		amqp.QueueTypeArg: amqp.QueueTypeQuorum,
		// a limit of n means n redeliveries
		"x-delivery-limit":          MaxAttempts - 1,
		"x-dead-letter-exchange":    "",
		"x-dead-letter-routing-key": c.DeadQueue(),
		// A dead letter leaves this queue only when the other one has confirmed
		// it. RabbitMQ asks for reject-publish with that.
		"x-dead-letter-strategy": "at-least-once",
		amqp.QueueOverflowArg:    amqp.QueueOverflowRejectPublish,
	}
	// Without waiting for their answers, which saves each Job two round trips: the
	// last one fails when one of them has.
	_, err = ch.QueueDeclare(c.DeadQueue(), true, false, false, true, dead)
	if err == nil {
		_, err = ch.QueueDeclare(c.Queue, true, false, false, true, main)
	}
	if err == nil {
		err = ch.Confirm(false)
	}
	var refused *amqp.Error
	if errors.As(err, &refused) && refused.Code == amqp.PreconditionFailed {
		return nil, fmt.Errorf("%w: RabbitMQ says %q; empty and delete the queue that it names, or set RABBITMQ_QUEUE to another name", ErrTopology, refused.Reason)
	}
	if err != nil {
		return nil, fmt.Errorf("declare the queues: %w", err)
	}
	return ch, nil
}
