package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/processor-job/worker"
)

var errStopped = errors.New("told to stop")

// fakeStore fails where a test wants it to, and notes what was asked of it.
type fakeStore struct {
	mu            sync.Mutex
	calls         []string
	begin, finish func() error
}

func (s *fakeStore) note(ctx context.Context, call string, f func() error) error {
	s.mu.Lock()
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	if err := ctx.Err(); err != nil || f == nil {
		return err
	}
	return f()
}

func (s *fakeStore) Begin(ctx context.Context, _ contract.Message, _ records.Run) error {
	return s.note(ctx, "begin", s.begin)
}

func (s *fakeStore) Finish(ctx context.Context, _ string) error {
	return s.note(ctx, "finish", s.finish)
}

// claim puts one message into a queue of its own and claims it.
func claim(t *testing.T, body string) (queue.Config, *queue.Consumer, *queue.Delivery) {
	t.Helper()
	c := contracttest.RabbitMQ(t)
	consumer := contracttest.Consumer(t, c)
	require.NoError(t, contracttest.Channel(t, c).Publish("", c.Queue, true, false, amqp.Publishing{MessageId: "id-1", Body: []byte(body)}))
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	return c, consumer, d
}

// requireLeft closes the consumer and checks how many messages wait and are dead.
func requireLeft(t *testing.T, c queue.Config, consumer *queue.Consumer, waiting, dead int) {
	t.Helper()
	require.NoError(t, consumer.Close())
	ch := contracttest.Channel(t, c)
	contracttest.Waiting(t, ch, c.Queue, waiting)
	contracttest.Waiting(t, ch, c.DeadQueue(), dead)
}

func newWorker(s worker.Store) worker.Worker {
	return worker.Worker{Store: s, Job: "processor-job-x", RetryTimeout: contracttest.Patience, Log: slog.New(slog.DiscardHandler)}
}

const event = `{"name":"a","content":"b"}`

func TestProcess(t *testing.T) {
	t.Parallel()
	c, consumer, d := claim(t, event)
	s := &fakeStore{}
	require.NoError(t, newWorker(s).Process(t.Context(), d, time.Now()))
	require.Equal(t, []string{"begin", "finish"}, s.calls)
	requireLeft(t, c, consumer, 0, 0)
}

func TestProcessStoresInMongoDB(t *testing.T) {
	t.Parallel()
	_, _, d := claim(t, event)
	s := contracttest.Store(t)
	began := time.Now()
	require.NoError(t, newWorker(s).Process(t.Context(), d, began))
	for r, err := range s.Changed(t.Context(), time.Time{}, 1, records.Done) {
		require.NoError(t, err)
		require.Equal(t, "id-1", r.ID)
		require.Equal(t, records.Done, r.Status)
		require.Equal(t, "processor-job-x", r.Job)
		require.Equal(t, 1, r.Attempts)
		require.Len(t, r.Runs, 1)
		require.Equal(t, "processor-job-x", r.Runs[0].Job)
		require.Equal(t, 1, r.Runs[0].Attempt)
		require.Equal(t, began.UnixMilli(), r.Runs[0].StartedAt.UnixMilli())
		require.WithinRange(t, r.Runs[0].ClaimedAt, r.Runs[0].StartedAt, r.FinishedAt)
	}
}

// An earlier Job died between marking the record done and acknowledging.
func TestAMessageThatIsDoneIsOnlyAcknowledged(t *testing.T) {
	t.Parallel()
	c, consumer, d := claim(t, event)
	s := &fakeStore{begin: func() error { return records.ErrDone }}
	w := newWorker(s)
	w.ProcessingTime = time.Hour // would not return if it worked again
	require.NoError(t, w.Process(t.Context(), d, time.Now()))
	require.Equal(t, []string{"begin"}, s.calls)
	requireLeft(t, c, consumer, 0, 0)
}

func TestAMessageThatCanNeverWorkIsADeadLetter(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"not JSON":      "hello",
		"no name":       `{"content":"b"}`,
		"another shape": `{"name":"a","size":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, consumer, d := claim(t, body)
			s := &fakeStore{}
			stopped, stop := context.WithCancel(t.Context())
			stop() // even a Job that is told to stop does not leave it to the next one
			err := newWorker(s).Process(stopped, d, time.Now())
			require.ErrorIs(t, err, contract.ErrInvalid)
			require.ErrorContains(t, err, "dead-letter queue")
			require.Empty(t, s.calls)
			requireLeft(t, c, consumer, 0, 1)
		})
	}
}

func TestToldToStopItGivesTheMessageBackAtOnce(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(s *fakeStore, stop func()){
		"before it stores":          func(s *fakeStore, stop func()) { stop() },
		"while MongoDB is away":     func(s *fakeStore, stop func()) { s.begin = func() error { stop(); return errors.New("away") } },
		"while it works":            func(s *fakeStore, stop func()) { s.begin = func() error { stop(); return nil } },
		"while it marks it as done": func(s *fakeStore, stop func()) { s.finish = func() error { stop(); return errors.New("away") } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, consumer, d := claim(t, event)
			s := &fakeStore{}
			ctx, cancel := context.WithCancelCause(t.Context())
			prepare(s, func() { cancel(errStopped) })
			w := newWorker(s)
			if name == "while it works" {
				w.ProcessingTime = time.Hour
			}
			require.ErrorIs(t, w.Process(ctx, d, time.Now()), errStopped)
			requireLeft(t, c, consumer, 1, 0)
		})
	}
}

func TestMongoDBAwayForTooLong(t *testing.T) {
	t.Parallel()
	away := errors.New("no server")
	for name, s := range map[string]*fakeStore{
		"when it stores":        {begin: func() error { return away }},
		"when it marks as done": {finish: func() error { return away }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, consumer, d := claim(t, event)
			w := newWorker(s)
			w.RetryTimeout = 300 * time.Millisecond
			err := w.Process(t.Context(), d, time.Now())
			require.ErrorIs(t, err, away)
			require.ErrorContains(t, err, "gave up after 300ms")
			require.Greater(t, len(s.calls), 2, "it tries more than once")
			requireLeft(t, c, consumer, 1, 0)
		})
	}
}

func TestMongoDBAwayForAMoment(t *testing.T) {
	t.Parallel()
	c, consumer, d := claim(t, event)
	s := &fakeStore{}
	s.begin = func() error {
		if len(s.calls) < 3 {
			return errors.New("no server")
		}
		return nil
	}
	require.NoError(t, newWorker(s).Process(t.Context(), d, time.Now()))
	require.Equal(t, []string{"begin", "begin", "begin", "finish"}, slices.Clone(s.calls))
	requireLeft(t, c, consumer, 0, 0)
}

// The connection is lost with the message: RabbitMQ already has it back.
func TestAnAcknowledgementThatCannotBeSentIsAnError(t *testing.T) {
	t.Parallel()
	c, consumer, d := claim(t, event)
	s := &fakeStore{finish: consumer.Close}
	require.ErrorContains(t, newWorker(s).Process(t.Context(), d, time.Now()), "acknowledge id-1")
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, 1)
}
