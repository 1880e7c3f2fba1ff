// Package queue is RabbitMQ as both services see it: the queue and its dead
// letters, a publisher that answers only once the broker has confirmed, and a
// consumer that claims a single message.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract/config"
)

const (
	// A stalled connection is given up after three missed heartbeats.
	heartbeat = 5 * time.Second
	// answerTimeout bounds dialling with TLS and login, then the declaration of the queues,
	// each request for a message, and the wait for a consumer's confirm; connectTimeout
	// bounds the wait for one address, which may be that of a node that is cut off;
	// writeTimeout bounds a write to a broker that has stopped reading, as in an alarm.
	answerTimeout  = 5 * time.Second
	connectTimeout = time.Second
	writeTimeout   = 5 * time.Second
	closeTimeout   = 5 * time.Second
)

var errNoAnswer = fmt.Errorf("no answer within %s", answerTimeout)

// Config says where RabbitMQ is. Its variables begin with RABBITMQ_.
type Config struct {
	config.Server
	Port  config.Port `default:"5672"`
	VHost string      `default:"/"`
	Queue string      `default:"task_queue"`

	// These are arguments of the queue: both services must have the same values, and
	// a queue that exists keeps the ones that it was declared with.

	// MaxAttempts is how many times a message is tried before it becomes a dead letter.
	MaxAttempts int `split_words:"true" default:"5"`
	// RetryMin is the pause before the second attempt, with RabbitMQ 4.3 and later.
	// The pause before attempt n is (n-1) times as long, and at most RetryMax.
	RetryMin time.Duration `split_words:"true" default:"5s"`
	RetryMax time.Duration `split_words:"true" default:"5m"`
}

// Validate names every problem with the RABBITMQ_ variables.
func (c Config) Validate() error {
	return errors.Join(
		c.Server.Validate("RABBITMQ"),
		config.Check(c.User != "" || c.Password != "", "RABBITMQ_USER: is empty; RabbitMQ needs a login"),
		config.Check(c.VHost != "", "RABBITMQ_VHOST: is empty; the default virtual host is /"),
		config.Check(c.Queue != "" && len(c.lockQueue()) <= 255, "RABBITMQ_QUEUE: give a name of 1 to 245 bytes"), // RabbitMQ takes no longer one
		config.Check(c.MaxAttempts >= 1, "RABBITMQ_MAX_ATTEMPTS: must be at least 1"),
		config.Check(c.RetryMin >= time.Millisecond && c.RetryMax >= c.RetryMin,
			"RABBITMQ_RETRY_MIN: must be at least 1ms and not longer than RABBITMQ_RETRY_MAX"),
	)
}

// DeadQueue names the queue of the dead letters.
func (c Config) DeadQueue() string { return c.Queue + ".dead" }

// lockQueue names the queue that is held while the dead letters are read or moved.
func (c Config) lockQueue() string { return c.DeadQueue() + ".lock" }

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
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	socket, err := connect(ctx, c.Host, string(c.Port))
	if err != nil {
		return nil, fmt.Errorf("RabbitMQ: %w", err)
	}
	// the library knows no context: closing the socket ends its handshake
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	conn, err := amqp.DialConfig(uri.String(), amqp.Config{
		// credentials go here and not into the URI, so they need no escaping
		SASL:            []amqp.Authentication{&amqp.PlainAuth{Username: c.User, Password: c.Password}},
		Vhost:           c.VHost,
		Heartbeat:       heartbeat,
		TLSClientConfig: tlsConfig,
		Properties:      amqp.Table{"connection_name": name},
		Dial:            func(string, string) (net.Conn, error) { return writeDeadline{socket}, nil },
	})
	if !stop() {
		err = fmt.Errorf("no login within %s: %w", answerTimeout, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("RabbitMQ: %w", config.ExplainTLS("RABBITMQ", c.explain(err)))
	}
	return conn, nil
}

// connect tries the host's addresses in random order: they may be several nodes.
func connect(ctx context.Context, host, port string) (conn net.Conn, err error) {
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	dialer := net.Dialer{Timeout: connectTimeout}
	for _, i := range rand.Perm(len(addresses)) {
		if conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(addresses[i], port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// explain adds to RabbitMQ's refusals what to do about them.
func (c Config) explain(err error) error {
	var refused *amqp.Error
	// RabbitMQ only closes the connection after a wrong login, and the library then
	// says ErrCredentials; its other errors of its own mean a connection that was lost
	if !errors.As(err, &refused) || !refused.Server && refused != amqp.ErrCredentials {
		return err
	}
	switch code := refused.Code; {
	case code == amqp.PreconditionFailed && strings.Contains(refused.Reason, "inequivalent"):
		return fmt.Errorf("RabbitMQ refuses: the queue exists with other arguments: %w. Arguments cannot be changed: set RABBITMQ_QUEUE to a new name for all services, or let the workers of the earlier version empty the queue, delete it and start again (docs/operations.md, A queue of an earlier version)", err)
	case code == amqp.NotFound:
		return fmt.Errorf("RabbitMQ refuses: %w, and the user %q may not declare it: declare it first, or allow the user to (docs/production.md, RabbitMQ's permissions)", err, c.User)
	case code == amqp.AccessRefused, code == amqp.NotAllowed && !strings.Contains(refused.Reason, "limit"): // of connections, which passes
		return fmt.Errorf("RabbitMQ refuses: %w. Check RABBITMQ_USER, RABBITMQ_PASSWORD and RABBITMQ_VHOST, and the permissions of the user %q (docs/production.md, RabbitMQ's permissions)", err, c.User)
	}
	return err
}

// writeDeadline bounds each write. Without it a broker that has stopped reading, as
// one does during an alarm, would block every publisher.
type writeDeadline struct{ net.Conn }

func (c writeDeadline) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// SetDeadline closes the connection at the given time. The library's CloseDeadline calls
// it, and would forget a real deadline with the next frame that it reads: during an alarm
// RabbitMQ sends heartbeats and reads nothing.
func (c writeDeadline) SetDeadline(t time.Time) error {
	if !t.IsZero() { // there is none after the handshake
		time.AfterFunc(time.Until(t), func() { _ = c.Close() })
	}
	return nil
}

// open connects and opens a channel in confirm mode after declaring both queues. Whichever
// service comes first declares them, with the same arguments. A user without the
// permission to finds them declared.
func open(ctx context.Context, c Config, name string) (*amqp.Connection, *amqp.Channel, error) {
	conn, err := Dial(ctx, c, name)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	// the library's calls know no context: closing the connection ends them
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
	ch, err := declare(conn, c, (*amqp.Channel).QueueDeclare)
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Code == amqp.AccessRefused {
		ch, err = declare(conn, c, (*amqp.Channel).QueueDeclarePassive)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
		return nil, nil, fmt.Errorf("declare the queues: %w", c.explain(err))
	}
	return conn, ch, nil
}

func declare(conn *amqp.Connection, c Config, queue func(_ *amqp.Channel, name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error)) (*amqp.Channel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	dead := amqp.Table{
		amqp.QueueTypeArg: amqp.QueueTypeQuorum,
		// Reading and requeueing a dead letter counts as a delivery, and RabbitMQ 4
		// drops a message after 20. Unlimited is -1 there, but 3.10 then drops the
		// message at once: so it is a limit that is never reached.
		"x-delivery-limit": 1_000_000_000,
	}
	main := amqp.Table{
		amqp.QueueTypeArg: amqp.QueueTypeQuorum,
		// a limit of n means n redeliveries
		"x-delivery-limit":          c.MaxAttempts - 1,
		"x-dead-letter-exchange":    "",
		"x-dead-letter-routing-key": c.DeadQueue(),
		// A dead letter leaves this queue only when the other one has confirmed
		// it. RabbitMQ asks for reject-publish with that.
		"x-dead-letter-strategy": "at-least-once",
		amqp.QueueOverflowArg:    amqp.QueueOverflowRejectPublish,
		// RabbitMQ 4.3 holds back a message after a failed attempt, that is after a
		// reject or when its consumer is lost, and not after a nack. Older versions
		// ignore these arguments.
		"x-delayed-retry-type": "failed",
		"x-delayed-retry-min":  c.RetryMin.Milliseconds(),
		"x-delayed-retry-max":  c.RetryMax.Milliseconds(),
	}
	// Declared without waiting for the answers, which saves each Job two round trips. If
	// RabbitMQ refuses one, it closes the channel. Confirm, which waits, returns the reason,
	// unless that came before everything was sent.
	_, noDead := queue(ch, c.DeadQueue(), true, false, false, true, dead)
	_, noMain := queue(ch, c.Queue, true, false, false, true, main)
	err = errors.Join(noDead, noMain, ch.Confirm(false))
	if errors.Is(err, amqp.ErrClosed) {
		err = cmp.Or(<-closed, amqp.ErrClosed)
	}
	return ch, err
}
