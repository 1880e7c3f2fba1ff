// Package contracttest gives a test a queue and a collection of its own on the
// real servers that the environment names. `make test` starts those.
package contracttest

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/semver"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

const (
	// Patience is how long a test waits for what must happen, and Tick how often
	// it looks.
	Patience = time.Minute
	Tick     = 20 * time.Millisecond

	howTo = "this test needs RabbitMQ and MongoDB: run it with make test (PKG=./… RUN=TestName picks some)"
)

// RabbitMQ returns the broker's address with the name of a new queue, which is
// deleted after the test together with its dead letters.
func RabbitMQ(t testing.TB) queue.Config {
	t.Helper()
	var s struct {
		valid
		RabbitMQ queue.Config
	}
	require.NoError(t, config.Load(&s), howTo)
	c := s.RabbitMQ
	require.NoError(t, c.Validate(), howTo)
	c.Queue = "test-" + rand.Text()
	c.RetryMin = 100 * time.Millisecond
	t.Cleanup(func() {
		ch := Channel(t, c)
		for _, name := range []string{c.Queue, c.DeadQueue()} {
			_, err := ch.QueueDelete(name, false, false, false)
			require.NoError(t, err)
		}
	})
	return c
}

// MongoDB returns the server's address with the name of a new collection.
func MongoDB(t testing.TB) records.Config {
	t.Helper()
	var s struct {
		valid
		MongoDB records.Config
	}
	require.NoError(t, config.Load(&s), howTo)
	c := s.MongoDB
	require.NoError(t, c.Validate(), howTo)
	c.Collection = "test-" + rand.Text()
	return c
}

// Store returns an open store on a new collection.
func Store(t testing.TB) *records.Store {
	t.Helper()
	s, err := records.Open(MongoDB(t), t.Name())
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	require.Eventually(t, func() bool { return s.Ping(t.Context()) == nil }, Patience, Tick, howTo)
	return s
}

// Channel opens a raw channel, for what the contract itself does not offer.
func Channel(t testing.TB, c queue.Config) *amqp.Channel {
	t.Helper()
	ch, err := Dial(t, c).Channel()
	require.NoError(t, err)
	return ch
}

// Dial opens a connection, which ends with the test.
func Dial(t testing.TB, c queue.Config) *amqp.Connection {
	t.Helper()
	conn, err := patiently(func() (*amqp.Connection, error) { return queue.Dial(context.Background(), c, t.Name()) })
	require.NoError(t, err, howTo)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// patiently has more patience than the services: on a busy machine a login takes seconds.
func patiently[T any](connect func() (T, error)) (connected T, err error) {
	for began := time.Now(); time.Since(began) < Patience; {
		connected, err = connect()
		if err == nil || !strings.Contains(err.Error(), "within 5s") {
			break
		}
	}
	return connected, err
}

// RabbitMQIsAtLeast reports whether the broker's version is at least the given one,
// such as 4.3.
func RabbitMQIsAtLeast(t testing.TB, c queue.Config, version string) bool {
	t.Helper()
	return semver.Compare("v"+Dial(t, c).Properties["version"].(string), "v"+version) >= 0
}

// Consumer returns a connected consumer.
func Consumer(t testing.TB, c queue.Config) *queue.Consumer {
	t.Helper()
	consumer, err := patiently(func() (*queue.Consumer, error) { return queue.Connect(t.Context(), c, t.Name()) })
	require.NoError(t, err, howTo)
	t.Cleanup(func() { _ = consumer.Close() })
	return consumer
}

// Waiting polls until so many messages wait in the queue. A quorum queue counts
// what a connection gave back shortly after that connection is closed.
func Waiting(t testing.TB, ch *amqp.Channel, name string, want int) {
	t.Helper()
	require.Eventually(t, func() bool {
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err == nil && q.Messages == want
	}, Patience, Tick, "%d messages in %s", want, name)
}

// valid lets a part of a configuration be loaded alone.
type valid struct{}

func (valid) Validate() error { return nil }
