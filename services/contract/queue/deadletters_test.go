package queue_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
)

// kill lets a message be delivered until the broker gives it up.
func kill(t *testing.T, c queue.Config) {
	t.Helper()
	for range c.MaxAttempts {
		consumer := contracttest.Consumer(t, c)
		_, err := consumer.Claim(t.Context(), contracttest.Patience)
		require.NoError(t, err)
		require.NoError(t, consumer.Close())
	}
	ch := contracttest.Channel(t, c)
	contracttest.Waiting(t, ch, c.DeadQueue(), 1)
}

// refuse lets a worker give up n messages, refused-0 and so on.
func refuse(t *testing.T, c queue.Config, n int) {
	t.Helper()
	consumer := contracttest.Consumer(t, c)
	for i := range n {
		require.NoError(t, contracttest.Channel(t, c).Publish("", c.Queue, true, false, amqp.Publishing{
			MessageId: fmt.Sprint("refused-", i), Body: []byte("odd \xff"),
		}))
		d, err := consumer.Claim(t.Context(), contracttest.Patience)
		require.NoError(t, err)
		require.NoError(t, d.DeadLetter(t.Context(), "not JSON", "processor-job-x"))
	}
	require.NoError(t, consumer.Close())
}

func TestDeadLettersAreListedAndStay(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	before := time.Now().Add(-time.Minute)
	sent := message("killer")
	require.NoError(t, publisher(t, c).Publish(t.Context(), sent))
	kill(t, c)
	refuse(t, c, 1)

	// several at once, again and again: they never hide them from each other
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dead, err := queue.DeadLetterQueue{Config: c}.List(t.Context(), 10)
			if err != nil || len(dead) != 2 {
				t.Errorf("%v %v", dead, err)
			}
		})
	}
	all.Wait()

	dead, err := queue.DeadLetterQueue{Config: c}.List(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, "killer", dead[0].ID)
	require.Equal(t, `{"name":"имя","content":"a&b"}`, dead[0].Body)
	require.Contains(t, dead[0].Reason, "its worker died or was stopped")
	require.Equal(t, c.MaxAttempts, dead[0].Attempts)
	require.Equal(t, sent.SentAt.UnixMilli(), dead[0].SentAt.UnixMilli())
	require.WithinRange(t, dead[0].DeadAt, before, time.Now().Add(time.Minute))
	require.Equal(t, "refused-0", dead[1].ID)
	require.Equal(t, "odd \uFFFD", dead[1].Body)
	require.Equal(t, "not JSON", dead[1].Reason)
	require.Equal(t, 1, dead[1].Attempts)
	require.Equal(t, "processor-job-x", dead[1].Job)
	require.WithinRange(t, dead[1].DeadAt, before, time.Now().Add(time.Minute))

	dead, err = queue.DeadLetterQueue{Config: c}.List(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, dead, 1)
}

func TestNoDeadLetters(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	dead, err := queue.DeadLetterQueue{Config: c}.List(t.Context(), 10)
	require.NoError(t, err)
	require.NotNil(t, dead)
	require.Empty(t, dead)
	n, err := queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "")
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "nobody")
	require.ErrorIs(t, err, queue.ErrNoDeadLetter)
}

func TestARedrivenMessageCountsOn(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	sent := message("killer")
	require.NoError(t, publisher(t, c).Publish(t.Context(), sent))
	for round := range 2 {
		kill(t, c)
		dead, err := queue.DeadLetterQueue{Config: c}.List(t.Context(), 10)
		require.NoError(t, err)
		require.Equal(t, (round+1)*c.MaxAttempts, dead[0].Attempts)
		n, err := queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "killer")
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	consumer := contracttest.Consumer(t, c)
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.Equal(t, 2*c.MaxAttempts+1, d.Attempt())
	m, err := d.Message()
	require.NoError(t, err)
	require.Equal(t, sent.Event, m.Event)
	require.Equal(t, sent.SentAt.UnixMilli(), m.SentAt.UnixMilli())
	contracttest.Waiting(t, contracttest.Channel(t, c), c.DeadQueue(), 0)
}

func TestRedriveOneAndAll(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	refuse(t, c, 5)
	n, err := queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "refused-3")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	ch := contracttest.Channel(t, c)
	contracttest.Waiting(t, ch, c.DeadQueue(), 4)
	n, err = queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, 4, n)
	contracttest.Waiting(t, ch, c.Queue, 5)
	contracttest.Waiting(t, ch, c.DeadQueue(), 0)
}

// Interrupted anywhere, a redrive leaves every message in one queue or, under
// the same id, in both.
func TestAnInterruptedRedriveLosesNothing(t *testing.T) {
	t.Parallel()
	const messages = 40
	c := contracttest.RabbitMQ(t)
	refuse(t, c, messages)
	ch := contracttest.Channel(t, c)
	count := func(name string) int {
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		require.NoError(t, err)
		return q.Messages
	}
	for delay := time.Duration(0); count(c.Queue) < messages; delay += 3 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		_, _ = queue.DeadLetterQueue{Config: c}.Redrive(ctx, "")
		cancel()
		require.Eventually(t, func() bool {
			return count(c.Queue)+count(c.DeadQueue()) >= messages
		}, contracttest.Patience, contracttest.Tick)
	}
	_, err := queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "")
	require.NoError(t, err)
	ids := map[string]bool{}
	for {
		d, ok, err := ch.Get(c.Queue, true)
		require.NoError(t, err)
		if !ok {
			break
		}
		ids[d.MessageId] = true
	}
	require.Len(t, ids, messages)
}

// A trace goes on where it was, however a message comes back.
func TestAMessageKeepsItsTraceHeaders(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	sent := message("id")
	sent.Trace = map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
	require.NoError(t, publisher(t, c).Publish(t.Context(), sent))
	consumer := contracttest.Consumer(t, c)
	for _, end := range []func(*queue.Delivery) error{
		func(d *queue.Delivery) error { return d.Retry() },
		func(d *queue.Delivery) error {
			if err := d.DeadLetter(t.Context(), "reason", "job"); err != nil {
				return err
			}
			_, err := queue.DeadLetterQueue{Config: c}.Redrive(t.Context(), "id")
			return err
		},
		(*queue.Delivery).Ack,
	} {
		d, err := consumer.Claim(t.Context(), contracttest.Patience)
		require.NoError(t, err)
		got, err := d.Message()
		require.NoError(t, err)
		require.Equal(t, sent.Trace, got.Trace)
		require.Equal(t, sent.SentAt.UnixMilli(), got.SentAt.UnixMilli())
		require.NoError(t, end(d))
	}
}
