package queue_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
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

// RabbitMQ takes a message's headers in one frame, of 128 KiB.
func TestALongReasonIsCut(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	consumer := contracttest.Consumer(t, c)
	require.NoError(t, contracttest.Channel(t, c).Publish("", c.Queue, true, false, amqp.Publishing{MessageId: "a"}))
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.NoError(t, d.DeadLetter(t.Context(), strings.Repeat("long ", 50_000), "job"))
	dead, err := deadLetters(t, c).List(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, dead, 1)
	require.Regexp(t, "^(long ){200,}.{0,4}…$", dead[0].Reason)
}

// The library closes the connection at a table that is nested deeper than 32.
func TestALetterThatCannotBeRead(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	contracttest.Consumer(t, c) // declares the queues
	odd := amqp.Table{}
	for range 40 {
		odd = amqp.Table{"in": odd}
	}
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Publish("", c.DeadQueue(), true, false, amqp.Publishing{MessageId: "odd", Headers: odd}))
	contracttest.Waiting(t, ch, c.DeadQueue(), 1)
	d := deadLetters(t, c)
	_, err := d.List(t.Context(), 10)
	require.ErrorIs(t, err, queue.ErrUnavailable)
	contracttest.Waiting(t, ch, c.DeadQueue(), 1) // given back
	n, err := d.Discard(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	dead, err := d.List(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, dead)
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

func deadLetters(t *testing.T, c queue.Config) *queue.DeadLetters {
	t.Helper()
	d := queue.NewDeadLetters(c, t.Name())
	t.Cleanup(d.Close)
	return d
}

// bury puts n dead letters into their queue, dead-0 and so on.
func bury(t *testing.T, c queue.Config, n int, change func(int, *amqp.Publishing)) {
	t.Helper()
	contracttest.Consumer(t, c) // declares the queues
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Confirm(false))
	var last *amqp.DeferredConfirmation
	for i := range n {
		letter := amqp.Publishing{MessageId: fmt.Sprint("dead-", i), Body: []byte("dead"), Headers: amqp.Table{
			"dead-letter-reason": "dead", "dead-letter-attempts": int64(1), "dead-letter-time": time.Now().UTC().Format(time.RFC3339),
		}}
		if change != nil {
			change(i, &letter)
		}
		var err error
		last, err = ch.PublishWithDeferredConfirm("", c.DeadQueue(), true, false, letter)
		require.NoError(t, err)
	}
	require.True(t, last.Wait())
}

// drain empties a queue and returns the ids of its messages.
func drain(t *testing.T, c queue.Config, name string) (ids []string) {
	t.Helper()
	ch := contracttest.Channel(t, c)
	for {
		m, ok, err := ch.Get(name, true) // a count would be 0 while the queue's leader is busy
		require.NoError(t, err)
		if !ok {
			return ids
		}
		ids = append(ids, m.MessageId)
	}
}

// line is a way to RabbitMQ that can be cut.
type line struct {
	config      queue.Config
	connections atomic.Int64
	left        atomic.Int64 // bytes until the cut, in both directions
	last        atomic.Pointer[net.Conn]
}

func newLine(t *testing.T, c queue.Config) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	l := &line{config: c}
	l.cutAfter(math.MaxInt)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	l.config.Host, l.config.Port = "127.0.0.1", config.Port(port)
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			l.connections.Add(1)
			l.last.Store(&near)
			far, err := net.Dial("tcp", net.JoinHostPort(c.Host, string(c.Port)))
			if err != nil {
				_ = near.Close()
				continue
			}
			go l.carry(near, far)
			go l.carry(far, near)
		}
	}()
	return l
}

func (l *line) cutAfter(n int) { l.left.Store(int64(n)) }

// cut ends the last connection.
func (l *line) cut() { _ = (*l.last.Load()).Close() }

func (l *line) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buffer := make([]byte, 4<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil || l.left.Add(-int64(n)) < 0 {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
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
	two := []*queue.DeadLetters{deadLetters(t, c), deadLetters(t, c)} // as in two processes
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			dead, err := two[i%2].List(t.Context(), 10)
			if err != nil || len(dead) != 2 {
				t.Errorf("%v %v", dead, err)
			}
		})
	}
	all.Wait()

	dead, err := deadLetters(t, c).List(t.Context(), 10)
	require.NoError(t, err)
	slices.SortFunc(dead, func(a, b queue.DeadLetter) int { return strings.Compare(a.ID, b.ID) }) // both have the same second
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

	dead, err = deadLetters(t, c).List(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, dead, 1)
}

func TestNoDeadLetters(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	dead, err := deadLetters(t, c).List(t.Context(), 10)
	require.NoError(t, err)
	require.NotNil(t, dead)
	require.Empty(t, dead)
	n, err := deadLetters(t, c).Redrive(t.Context(), "")
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = deadLetters(t, c).Redrive(t.Context(), "nobody")
	require.ErrorIs(t, err, queue.ErrNoDeadLetter)
}

func TestARedrivenMessageCountsOn(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	sent := message("killer")
	require.NoError(t, publisher(t, c).Publish(t.Context(), sent))
	for round := range 2 {
		kill(t, c)
		dead, err := deadLetters(t, c).List(t.Context(), 10)
		require.NoError(t, err)
		require.Equal(t, (round+1)*c.MaxAttempts, dead[0].Attempts)
		n, err := deadLetters(t, c).Redrive(t.Context(), "killer")
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
	n, err := deadLetters(t, c).Redrive(t.Context(), "refused-3")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	ch := contracttest.Channel(t, c)
	contracttest.Waiting(t, ch, c.DeadQueue(), 4)
	n, err = deadLetters(t, c).Redrive(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, 4, n)
	contracttest.Waiting(t, ch, c.Queue, 5)
	contracttest.Waiting(t, ch, c.DeadQueue(), 0)
}

func TestDiscardOneAndAll(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	bury(t, c, 5, nil)
	bury(t, c, 1, nil) // a copy of the first, as a crash may leave one
	d := deadLetters(t, c)
	for _, want := range []struct {
		id   string
		n    int
		left int
	}{{"dead-0", 2, 4}, {"dead-3", 1, 3}, {"", 3, 0}, {"", 0, 0}} {
		n, err := d.Discard(t.Context(), want.id)
		require.NoError(t, err)
		require.Equal(t, want.n, n)
		left, err := d.List(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, left, want.left)
	}
	_, err := d.Discard(t.Context(), "dead-3")
	require.ErrorIs(t, err, queue.ErrNoDeadLetter)
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, 0)
}

// A policy with a small delivery limit would make RabbitMQ drop a letter that was looked
// at too often: its count must not grow. Here it has been counted before, by somebody
// else's look.
func TestALookIsNotCounted(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	require.NoError(t, publisher(t, c).Publish(t.Context(), message("killer")))
	kill(t, c)
	bury(t, c, 2, nil)
	ch := contracttest.Channel(t, c)
	_, ok, err := ch.Get(c.DeadQueue(), false)
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, ch.Close())

	ch = contracttest.Channel(t, c)
	contracttest.Waiting(t, ch, c.DeadQueue(), 3)
	d := deadLetters(t, c)
	for range 30 {
		dead, err := d.List(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, dead, 3)
		_, err = d.Redrive(t.Context(), "nobody")
		require.ErrorIs(t, err, queue.ErrNoDeadLetter)
	}
	for range 3 {
		letter, ok, err := ch.Get(c.DeadQueue(), false)
		require.NoError(t, err)
		require.True(t, ok)
		require.Zero(t, header(letter, "x-delivery-count"))
	}
}

func header(d amqp.Delivery, name string) int64 {
	value, _ := d.Headers[name].(int64)
	return value
}

// More letters than are taken at a time, and than are listed.
func TestManyDeadLetters(t *testing.T) {
	t.Parallel()
	const letters = 2500
	c := contracttest.RabbitMQ(t)
	bury(t, c, letters, nil)
	d := deadLetters(t, c)
	for range 3 {
		dead, err := d.List(t.Context(), 1000)
		require.NoError(t, err)
		require.Len(t, dead, 1000)
	}
	for _, remove := range []func(context.Context, string) (int, error){d.Redrive, d.Discard} {
		n, err := remove(t.Context(), "dead-2490")
		if n == 0 {
			n, err = remove(t.Context(), "dead-2491")
		}
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	n, err := d.Redrive(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, letters-2, n)
	require.Len(t, drain(t, c, c.Queue), letters-1)
	require.Empty(t, drain(t, c, c.DeadQueue()))
}

func TestTheOldestDeadLetterIsFirst(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	bury(t, c, 5, func(i int, p *amqp.Publishing) {
		p.Headers["dead-letter-time"] = at.Add(time.Duration(-i) * time.Minute).Format(time.RFC3339)
	})
	d := deadLetters(t, c)
	for range 3 {
		dead, err := d.List(t.Context(), 10)
		require.NoError(t, err)
		require.Equal(t, "dead-4", dead[0].ID)
		require.Equal(t, "dead-0", dead[4].ID)
	}
}

// Cut short by its context, a redrive leaves every message in one queue, and says how
// many it has sent.
func TestARedriveThatIsCutShort(t *testing.T) {
	t.Parallel()
	const letters = 2000
	c := contracttest.RabbitMQ(t)
	bury(t, c, letters, nil)
	d := deadLetters(t, c)
	_, err := d.List(t.Context(), 1) // connects
	require.NoError(t, err)
	sent := 0
	for limit := time.Millisecond; sent < letters; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		n, err := d.Redrive(ctx, "")
		cancel()
		sent += n
		if err != nil {
			require.ErrorIs(t, err, queue.ErrCutShort)
			require.NotErrorIs(t, err, queue.ErrUnavailable)
		}
	}
	require.Equal(t, letters, sent)
	require.Len(t, drain(t, c, c.Queue), letters)
	require.Empty(t, drain(t, c, c.DeadQueue()))
}

// The queue was deleted since the visitor connected: nothing may leave the dead letters.
func TestARedriveWithoutItsQueueLosesNothing(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	bury(t, c, 3, nil)
	d := deadLetters(t, c)
	_, err := d.List(t.Context(), 10) // connects
	require.NoError(t, err)
	ch := contracttest.Channel(t, c)
	_, err = ch.QueueDelete(c.Queue, false, false, false)
	require.NoError(t, err)
	_, err = d.Redrive(t.Context(), "")
	require.ErrorContains(t, err, "a queue is gone")
	contracttest.Waiting(t, ch, c.DeadQueue(), 3)
	n, err := d.Redrive(t.Context(), "") // connects again, which declares it
	require.NoError(t, err)
	require.Equal(t, 3, n)
	contracttest.Waiting(t, ch, c.Queue, 3)
}

// When the connection is lost anywhere, a message is in one queue or, under one id, in
// both, and the next call connects again.
func TestALostConnectionLosesNoDeadLetter(t *testing.T) {
	t.Parallel()
	const letters = 1200
	c := contracttest.RabbitMQ(t)
	bury(t, c, letters, nil)
	line := newLine(t, c)
	d := deadLetters(t, line.config)
	for cut := 40 << 10; ; cut += 50 << 10 {
		line.cutAfter(cut)
		_, _ = d.List(t.Context(), letters)
		if _, err := d.Redrive(t.Context(), ""); err == nil {
			break
		}
	}
	require.Greater(t, line.connections.Load(), int64(3))
	ids := map[string]bool{}
	require.Eventually(t, func() bool { // some may still be on their way back
		for _, id := range append(drain(t, c, c.Queue), drain(t, c, c.DeadQueue())...) {
			ids[id] = true
		}
		return len(ids) == letters
	}, contracttest.Patience, contracttest.Tick)
}

// A connection that was lost between two visits is no reason to fail.
func TestAVisitorConnectsAgain(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	bury(t, c, 3, nil)
	line := newLine(t, c)
	d := deadLetters(t, line.config)
	for visit := range 3 {
		dead, err := d.List(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, dead, 3)
		require.EqualValues(t, visit+1, line.connections.Load())
		line.cut()
	}
}

func TestManyVisitorsUseOneConnection(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	bury(t, c, 3, nil)
	line := newLine(t, c)
	d := deadLetters(t, line.config)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if dead, err := d.List(t.Context(), 10); err != nil || len(dead) != 3 {
				t.Errorf("%v %v", dead, err)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, line.connections.Load())
}

func TestAVisitorDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	d := deadLetters(t, c)
	_, err := d.List(t.Context(), 10)
	require.NoError(t, err)
	other := contracttest.Dial(t, c) // a visitor in another process
	ch, err := other.Channel()
	require.NoError(t, err)
	_, err = ch.QueueDeclare(c.DeadQueue()+".lock", false, true, true, false, nil)
	require.NoError(t, err)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := d.Discard(ctx, "")
			if !errors.Is(err, queue.ErrCutShort) || errors.Is(err, queue.ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.NoError(t, other.Close())
	_, err = d.List(t.Context(), 10)
	require.NoError(t, err)
}

// All but the expiration, which would make it vanish, and the user-id.
func TestARedrivenMessageKeepsItsProperties(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	want := amqp.Publishing{
		Headers: amqp.Table{"theirs": "kept"}, ContentType: "text/plain", ContentEncoding: "identity", DeliveryMode: amqp.Persistent,
		Priority: 3, CorrelationId: "c", ReplyTo: "r", MessageId: "m", Timestamp: time.Unix(1_700_000_000, 0), Type: "t",
		UserId: c.User, AppId: "a", Body: []byte("odd"), Expiration: "3600000",
	}
	consumer := contracttest.Consumer(t, c)
	ch := contracttest.Channel(t, c)
	require.NoError(t, ch.Publish("", c.Queue, true, false, want))
	claimed, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.NoError(t, claimed.DeadLetter(t.Context(), "reason", "job"))
	d := deadLetters(t, c)
	_, err = d.List(t.Context(), 10)
	require.NoError(t, err)
	_, err = d.Redrive(t.Context(), "m")
	require.NoError(t, err)

	got, ok, err := ch.Get(c.Queue, true)
	require.NoError(t, err)
	require.True(t, ok)
	delete(got.Headers, "x-delivery-count")
	want.Headers["attempts-before"] = int64(1)
	want.Expiration, want.UserId = "", ""
	require.Equal(t, want, amqp.Publishing{
		Headers: got.Headers, ContentType: got.ContentType, ContentEncoding: got.ContentEncoding, DeliveryMode: got.DeliveryMode,
		Priority: got.Priority, CorrelationId: got.CorrelationId, ReplyTo: got.ReplyTo, MessageId: got.MessageId, Timestamp: got.Timestamp,
		Type: got.Type, UserId: got.UserId, AppId: got.AppId, Body: got.Body, Expiration: got.Expiration,
	})
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
			_, err := deadLetters(t, c).Redrive(t.Context(), "id")
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

// Nobody has counted its attempts.
func TestALetterThatSomebodyHasPutThere(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	bury(t, c, 1, func(_ int, letter *amqp.Publishing) { *letter = amqp.Publishing{Body: []byte("by hand")} })
	dead := deadLetters(t, c)
	for range 2 { // the second look sees the copy
		found, err := dead.List(t.Context(), 10)
		require.NoError(t, err)
		require.Equal(t, []queue.DeadLetter{{Body: "by hand"}}, found)
	}
}
