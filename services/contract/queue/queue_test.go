package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
	"keda-p2/services/contract/config"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
)

// publisher returns a running publisher that is ready.
func publisher(t *testing.T, c queue.Config) *queue.Publisher {
	t.Helper()
	p := queue.NewPublisher(c, t.Name(), contracttest.Patience, slog.New(slog.DiscardHandler))
	run(t, p)
	require.Eventually(t, func() bool { return p.Ready() == nil }, contracttest.Patience, contracttest.Tick)
	return p
}

// run ends the publisher with the test, and fails the test if it does not end.
func run(t *testing.T, p *queue.Publisher) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(contracttest.Patience):
			t.Error("Run did not end with its context")
		}
	})
}

func id(d *queue.Delivery) string {
	m, _ := d.Message()
	return m.ID
}

func message(id string) contract.Message {
	return contract.Message{ID: id, Event: contract.Event{Name: "имя", Content: "a&b"}, SentAt: time.Now()}
}

func TestAMessageArrivesAsItWasSent(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	sent := message("id-1")
	require.NoError(t, publisher(t, c).Publish(t.Context(), sent))

	consumer := contracttest.Consumer(t, c)
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.Equal(t, 1, d.Attempt())
	got, err := d.Message()
	require.NoError(t, err)
	require.Equal(t, sent.Event, got.Event)
	require.Equal(t, sent.ID, got.ID)
	require.Equal(t, sent.SentAt.UnixMilli(), got.SentAt.UnixMilli())
	require.NoError(t, d.Ack())
	require.NoError(t, consumer.Close())

	_, err = contracttest.Consumer(t, c).Claim(t.Context(), 0)
	require.ErrorIs(t, err, queue.ErrEmpty, "an acknowledged message must be gone")
}

func TestTheMessageOnTheWire(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	sent := message("id-1")
	require.NoError(t, publisher(t, c).Publish(t.Context(), sent))
	raw, ok, err := contracttest.Channel(t, c).Get(c.Queue, true)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, `{"name":"имя","content":"a&b"}`, string(raw.Body))
	require.Equal(t, "id-1", raw.MessageId)
	require.Equal(t, "application/json", raw.ContentType)
	require.Equal(t, amqp.Persistent, raw.DeliveryMode)
	require.Equal(t, sent.SentAt.Unix(), raw.Timestamp.Unix())
}

func TestPublishFromManyGoroutines(t *testing.T) {
	t.Parallel()
	const messages = 500
	c := contracttest.RabbitMQ(t)
	p := publisher(t, c)
	errs := make(chan error, messages)
	for i := range messages {
		go func() { errs <- p.Publish(t.Context(), message(fmt.Sprint(i))) }()
	}
	for range messages {
		require.NoError(t, <-errs)
	}
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, messages)
}

// The queue is deleted under a publisher that believes it is there.
func TestAMessageThatNoQueueTakesIsAnErrorAndTheQueueComesBack(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	p := publisher(t, c)
	_, err := contracttest.Channel(t, c).QueueDelete(c.Queue, false, false, false)
	require.NoError(t, err)

	errs := make(chan error, 20)
	for i := range cap(errs) {
		go func() { errs <- p.Publish(t.Context(), message(fmt.Sprint(i))) }()
	}
	stored := 0 // by one that began when the queue was there again
	for range cap(errs) {
		if <-errs == nil {
			stored++
		}
	}
	require.Less(t, stored, cap(errs))

	require.Eventually(t, func() bool {
		return p.Publish(t.Context(), message("after")) == nil
	}, contracttest.Patience, contracttest.Tick)
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, stored+1)
}

func TestPublishWithoutABroker(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())

	for name, listener := range map[string]net.Listener{"refused": closed, "silent": silent} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := queue.Config{VHost: "/", Queue: "q"}
			c.User, c.Password = "user", "s3cret"
			host, port, err := net.SplitHostPort(listener.Addr().String())
			require.NoError(t, err)
			c.Host, c.Port = host, config.Port(port)
			p := queue.NewPublisher(c, "test", time.Minute, slog.New(slog.DiscardHandler))
			run(t, p)
			err = p.Publish(t.Context(), message("id"))
			require.ErrorIs(t, err, queue.ErrUnavailable)
			require.NotContains(t, err.Error(), c.Password)

			_, err = queue.Connect(t.Context(), c, "test")
			require.Error(t, err)
			require.NotContains(t, err.Error(), c.Password)
		})
	}
}

// However long RabbitMQ is away, it is tried every five seconds.
func TestThePauseBetweenTwoTriesIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := queue.Config{Server: config.Server{Host: "127.0.0.1"}, Port: "1", VHost: "/", Queue: "q"} // refused at once
		var log bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		queue.NewPublisher(c, t.Name(), time.Second, slog.New(slog.NewTextHandler(&log, nil))).Run(ctx)
		require.InDelta(t, 720, strings.Count(log.String(), "will try again"), 15)
	})
}

func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	contracttest.Consumer(t, c) // the clean-up deletes the queues
	c.Password = "wr0ng"
	var err error
	require.Eventually(t, func() bool { // RabbitMQ takes three seconds, and a busy machine some more
		_, err = queue.Connect(t.Context(), c, "test")
		return !errors.Is(err, context.DeadlineExceeded)
	}, contracttest.Patience, contracttest.Tick)
	require.ErrorIs(t, err, amqp.ErrCredentials)
	require.NotContains(t, err.Error(), c.Password)
}

func TestAQueueWithOtherArgumentsIsNamed(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	_, err := contracttest.Channel(t, c).QueueDeclare(c.Queue, true, false, false, false, nil)
	require.NoError(t, err)

	_, err = queue.Connect(t.Context(), c, "test")
	require.ErrorContains(t, err, "RabbitMQ refuses")
	require.ErrorContains(t, err, c.Queue)
	require.ErrorContains(t, err, "delete it")

	p := queue.NewPublisher(c, "test", time.Second, slog.New(slog.DiscardHandler))
	run(t, p)
	require.Eventually(t, func() bool { return p.Ready() != nil && strings.Contains(p.Ready().Error(), "RabbitMQ refuses") }, contracttest.Patience, contracttest.Tick)
}

func TestClaimWaitsForAMessage(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	p := publisher(t, c)
	consumer := contracttest.Consumer(t, c)
	claimed := make(chan error, 1)
	go func() {
		_, err := consumer.Claim(t.Context(), contracttest.Patience)
		claimed <- err
	}()
	require.NoError(t, p.Publish(t.Context(), message("late")))
	require.NoError(t, <-claimed)
}

func TestClaimEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	consumer := contracttest.Consumer(t, c)
	stopped := errors.New("told to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	waiting := make(chan error, 1)
	go func() {
		_, err := consumer.Claim(ctx, time.Hour)
		waiting <- err
	}()
	cancel(stopped)
	require.ErrorIs(t, <-waiting, stopped)

	require.NoError(t, publisher(t, c).Publish(t.Context(), message("for another one")))
	_, err := consumer.Claim(ctx, time.Hour)
	require.ErrorIs(t, err, stopped)
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, 1)
}

// Two consumers never hold the same message, and a held one is not counted as
// ready, which is what KEDA relies on.
func TestAClaimedMessageIsNobodyElses(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	p := publisher(t, c)
	require.NoError(t, p.Publish(t.Context(), message("1")))
	require.NoError(t, p.Publish(t.Context(), message("2")))
	first, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, 1)
	second, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"1", "2"}, []string{id(first), id(second)})
	_, err = contracttest.Consumer(t, c).Claim(t.Context(), 0)
	require.ErrorIs(t, err, queue.ErrEmpty)
}

// give claims one message and gives it back as the test says.
func give(t *testing.T, c queue.Config, back func(*queue.Delivery) error) (attempt int) {
	t.Helper()
	consumer := contracttest.Consumer(t, c)
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.NoError(t, back(d))
	require.NoError(t, consumer.Close())
	return d.Attempt()
}

// Work that fails each time must not go on for ever.
func TestAMessageThatIsRetriedEachTimeEndsAsADeadLetter(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	require.NoError(t, publisher(t, c).Publish(t.Context(), message("too long")))
	for attempt := 1; attempt <= c.MaxAttempts; attempt++ {
		require.Equal(t, attempt, give(t, c, func(d *queue.Delivery) error {
			require.Equal(t, attempt == c.MaxAttempts, d.LastAttempt())
			return d.Retry()
		}))
	}
	require.Equal(t, "too long", deadLetter(t, c).MessageId)
}

// A node that is taken away is not the message's fault. Before RabbitMQ 4.3 the
// broker cannot tell, and counts it.
func TestAReleasedMessageComesAgainAtOnceAndIsNoAttemptWhereRabbitMQCanTell(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	c.RetryMin = time.Hour // holds back what has failed, not this
	c.RetryMax = time.Hour
	require.NoError(t, publisher(t, c).Publish(t.Context(), message("evicted")))
	releases, counts := 2*c.MaxAttempts, !contracttest.RabbitMQIsAtLeast(t, c, "4.3")
	if counts {
		releases = c.MaxAttempts
	}
	for n := range releases {
		want := 1
		if counts {
			want = n + 1
		}
		require.Equal(t, want, give(t, c, (*queue.Delivery).Release))
	}
	ch := contracttest.Channel(t, c)
	if counts {
		contracttest.Waiting(t, ch, c.DeadQueue(), 1)
	} else {
		contracttest.Waiting(t, ch, c.Queue, 1)
	}
}

// RabbitMQ 4.3 holds a failed message back, and KEDA, which counts the ready ones,
// starts no Job for it meanwhile. Older versions deliver it again at once.
func TestARetryWaitsWhereRabbitMQCan(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	c.RetryMin, c.RetryMax = time.Hour, time.Hour
	require.NoError(t, publisher(t, c).Publish(t.Context(), message("fails")))
	give(t, c, (*queue.Delivery).Retry)
	ready := 1
	if contracttest.RabbitMQIsAtLeast(t, c, "4.3") {
		ready = 0
	}
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, ready)
}

// A consumer that dies with its message each time is the message that kills
// its worker.
func TestAMessageThatKillsItsConsumerEndsAsADeadLetter(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	require.NoError(t, publisher(t, c).Publish(t.Context(), message("deadly")))
	for attempt := 1; attempt <= c.MaxAttempts; attempt++ {
		consumer := contracttest.Consumer(t, c)
		d, err := consumer.Claim(t.Context(), contracttest.Patience)
		require.NoError(t, err)
		require.Equal(t, attempt, d.Attempt())
		require.NoError(t, consumer.Close(), "the connection ends without an acknowledgement")
		<-consumer.Lost()
	}
	dead := deadLetter(t, c)
	require.Equal(t, "deadly", dead.MessageId)
	require.Equal(t, "delivery_limit", dead.Headers["x-first-death-reason"])
	_, err := contracttest.Consumer(t, c).Claim(t.Context(), 0)
	require.ErrorIs(t, err, queue.ErrEmpty)
}

func TestDeadLetterKeepsTheMessageAndSaysWhy(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	consumer := contracttest.Consumer(t, c)
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Publish("", c.Queue, true, false, amqp.Publishing{
		MessageId: "odd", Body: []byte("not JSON"), Headers: amqp.Table{"theirs": "kept"},
	}))
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	_, err = d.Message()
	require.ErrorIs(t, err, contract.ErrInvalid)
	require.NoError(t, d.DeadLetter(t.Context(), err.Error(), "processor-job-x"))
	require.NoError(t, consumer.Close())

	dead := deadLetter(t, c)
	require.Equal(t, "not JSON", string(dead.Body))
	require.Equal(t, "odd", dead.MessageId)
	require.Equal(t, "kept", dead.Headers["theirs"])
	require.Contains(t, dead.Headers["dead-letter-reason"], "not JSON")
	require.Equal(t, "processor-job-x", dead.Headers["dead-letter-job"])
	require.EqualValues(t, 1, dead.Headers["dead-letter-attempts"])
	_, err = time.Parse(time.RFC3339, dead.Headers["dead-letter-time"].(string))
	require.NoError(t, err)
	contracttest.Waiting(t, ch, c.Queue, 0)
}

// RabbitMQ 4 drops a message after 20 deliveries unless it is told otherwise.
func TestLookingAtADeadLetterDoesNotWearItOut(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	contracttest.Consumer(t, c) // declares the queues
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Publish("", c.DeadQueue(), true, false, amqp.Publishing{Body: []byte("dead")}))
	for range 30 {
		looker := contracttest.Channel(t, c)
		require.Eventually(t, func() bool {
			_, ok, err := looker.Get(c.DeadQueue(), false)
			return err == nil && ok
		}, contracttest.Patience, contracttest.Tick)
		require.NoError(t, looker.Close())
	}
	require.Equal(t, "dead", string(deadLetter(t, c).Body))
}

func TestDeadLetterWithoutItsQueueLosesNothing(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	consumer := contracttest.Consumer(t, c)
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Publish("", c.Queue, true, false, amqp.Publishing{MessageId: "odd", Body: []byte("odd")}))
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	_, err = ch.QueueDelete(c.DeadQueue(), false, false, false)
	require.NoError(t, err)
	require.ErrorContains(t, d.DeadLetter(t.Context(), "odd", "job"), "is gone")
	require.NoError(t, d.Release())
	require.NoError(t, consumer.Close())
	contracttest.Waiting(t, ch, c.Queue, 1)
}

// The message of another program gets an id once, and keeps all that it had.
func TestAMessageWithoutAnIDGetsOne(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	consumer := contracttest.Consumer(t, c)
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Publish("", c.Queue, true, false, amqp.Publishing{Body: []byte(`{"name":"a"}`), AppId: "theirs"}))
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	m, err := d.Message()
	require.NoError(t, err)
	require.Equal(t, "a", m.Name)
	require.NotEmpty(t, m.ID)
	contracttest.Waiting(t, ch, c.Queue, 0) // and not a second one
	require.NoError(t, d.Release())
	require.NoError(t, consumer.Close())
	again, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.Equal(t, m.ID, id(again))
	require.NoError(t, again.Ack())
}

// A long queue name leaves no room for the dead-letter queue's.
func TestConfigValidate(t *testing.T) {
	t.Parallel()
	c := queue.Config{Port: "5672", VHost: "/", Queue: strings.Repeat("q", 246), MaxAttempts: 5, RetryMin: time.Second, RetryMax: time.Second}
	c.Host, c.User = "rabbitmq", "user"
	require.ErrorContains(t, c.Validate(), "RABBITMQ_QUEUE")
	c.Queue = c.Queue[1:]
	require.NoError(t, c.Validate())
	c.MaxAttempts, c.RetryMin = 0, time.Minute
	require.ErrorContains(t, c.Validate(), "RABBITMQ_MAX_ATTEMPTS: must be at least 1")
	require.ErrorContains(t, c.Validate(), "RABBITMQ_RETRY_MIN: must be at least 1ms and not longer than RABBITMQ_RETRY_MAX")
}

func deadLetter(t *testing.T, c queue.Config) amqp.Delivery {
	t.Helper()
	ch := contracttest.Channel(t, c)
	var dead amqp.Delivery
	require.Eventually(t, func() bool {
		d, ok, err := ch.Get(c.DeadQueue(), true)
		dead = d
		return err == nil && ok
	}, contracttest.Patience, contracttest.Tick)
	return dead
}

// RabbitMQ may refuse the first queue before the second is declared.
func TestARefusalThatComesEarlyIsNamed(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	_, err := contracttest.Channel(t, c).QueueDeclare(c.DeadQueue(), true, false, false, false, nil) // a classic one
	require.NoError(t, err)
	_, err = queue.Declare(contracttest.Dial(t, c), c, func(ch *amqp.Channel, name string, durable, autoDelete, exclusive, noWait bool, args amqp.Table) (amqp.Queue, error) {
		q, err := ch.QueueDeclare(name, durable, autoDelete, exclusive, noWait, args)
		require.Eventually(t, ch.IsClosed, contracttest.Patience, contracttest.Tick)
		return q, err
	})
	require.ErrorContains(t, err, "PRECONDITION_FAILED")
}
