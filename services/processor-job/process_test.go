package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

var errStopped = errors.New("told to stop")

// fakeStore fails where a test wants it to, and notes what was asked of it.
type fakeStore struct {
	mu                  sync.Mutex
	calls               []string
	begin, finish, fail func() error
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

func (s *fakeStore) Fail(ctx context.Context, _, _ string, status records.Status, _ string) error {
	return s.note(ctx, string(status), s.fail)
}

// fakeDelivery notes how it was settled.
type fakeDelivery struct {
	settled string
	full    bool // the dead-letter queue
}

func (d *fakeDelivery) Attempt() int      { return 1 }
func (d *fakeDelivery) LastAttempt() bool { return false }
func (d *fakeDelivery) Ack() error        { d.settled = "ack"; return nil }
func (d *fakeDelivery) Retry() error      { d.settled = "retry"; return nil }
func (d *fakeDelivery) Release() error    { d.settled = "release"; return nil }
func (d *fakeDelivery) Message() (contract.Message, error) {
	return contract.Message{ID: "id-1", Event: contract.Event{Name: "a"}}, nil
}

func (d *fakeDelivery) DeadLetter(context.Context, string, string) error {
	if d.full {
		return queue.ErrUnconfirmed
	}
	d.settled = "dead letter"
	return nil
}

func newProcessor(s store, work func(context.Context, contract.Message) error) processor {
	if work == nil {
		work = func(context.Context, contract.Message) error { return nil }
	}
	return processor{store: s, work: work, job: "processor-job-x", workTimeout: time.Hour, retryTimeout: contracttest.Patience, log: slog.New(slog.DiscardHandler)}
}

// publish puts one message into a queue of its own, which allows three attempts.
func publish(t *testing.T, body string) queue.Config {
	t.Helper()
	c := contracttest.RabbitMQ(t)
	c.MaxAttempts = 3
	contracttest.Consumer(t, c) // declares the queues
	require.NoError(t, contracttest.Channel(t, c).Publish("", c.Queue, true, false, amqp.Publishing{MessageId: "id-1", Body: []byte(body)}))
	return c
}

// once claims the message and processes it.
func once(t *testing.T, ctx context.Context, c queue.Config, p processor) outcome {
	t.Helper()
	consumer := contracttest.Consumer(t, c)
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	o := p.process(ctx, d, time.Now())
	require.NoError(t, consumer.Close())
	return o
}

// requireLeft checks how many messages wait and are dead. One that is held back for a
// retry is neither, so it is waited for.
func requireLeft(t *testing.T, c queue.Config, waiting, dead int) {
	t.Helper()
	ch := contracttest.Channel(t, c)
	contracttest.Waiting(t, ch, c.Queue, waiting)
	contracttest.Waiting(t, ch, c.DeadQueue(), dead)
}

func record(t *testing.T, s *records.Store) records.Record {
	t.Helper()
	for r, err := range s.Changed(t.Context(), time.Time{}, 1, records.Processing, records.Retrying, records.Failed, records.Done) {
		require.NoError(t, err)
		return r
	}
	t.Fatal("there is no record")
	return records.Record{}
}

const event = `{"name":"a","content":"b"}`

// What work does, and what becomes of the message and of its record.
func TestProcess(t *testing.T) {
	t.Parallel()
	type attempt struct {
		outcome       outcome
		waiting, dead int
		status        records.Status
		error         string
	}
	again := func(text string, o outcome) attempt { return attempt{o, 1, 0, records.Retrying, text} }
	failed := func(text string, o outcome) attempt { return attempt{o, 0, 1, records.Failed, text} }
	succeeds := attempt{done, 0, 0, records.Done, ""}
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		work     func(attempt int) error
		attempts []attempt
	}{
		"returns nil":             {func(int) error { return nil }, []attempt{succeeds}},
		"returns an error":        {func(int) error { return boom }, []attempt{again("boom", retried), again("boom", retried), failed("boom", deadLettered)}},
		"succeeds at last":        {func(n int) error { return []error{boom, boom, nil}[n-1] }, []attempt{again("boom", retried), again("boom", retried), succeeds}},
		"fails for good":          {func(int) error { return permanent(boom) }, []attempt{failed("boom", deadLettered)}},
		"fails for good later":    {func(n int) error { return []error{boom, permanent(boom)}[n-1] }, []attempt{again("boom", retried), failed("boom", deadLettered)}},
		"panics":                  {func(int) error { panic("oh") }, []attempt{again("work panicked: oh", crashed), again("work panicked: oh", crashed), failed("work panicked: oh", crashed)}},
		"panics with an error":    {func(int) error { panic(permanent(boom)) }, []attempt{again("work panicked: boom", crashed)}},
		"wraps a permanent error": {func(int) error { return errors.Join(errors.New("disk"), permanent(boom)) }, []attempt{failed("disk\nboom", deadLettered)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := publish(t, event)
			s := contracttest.Store(t)
			for i, want := range c.attempts {
				p := newProcessor(s, func(_ context.Context, m contract.Message) error {
					require.Equal(t, contract.Event{Name: "a", Content: "b"}, m.Event)
					require.Equal(t, "id-1", m.ID)
					return c.work(i + 1)
				})
				require.Equal(t, want.outcome, once(t, t.Context(), q, p), "attempt %d", i+1)
				requireLeft(t, q, want.waiting, want.dead)
				r := record(t, s)
				require.Equal(t, want.status, r.Status)
				require.Equal(t, want.error, r.Error)
				require.Equal(t, i+1, r.Attempts)
				require.Len(t, r.Runs, i+1)
			}
			if last := c.attempts[len(c.attempts)-1]; last.dead > 0 {
				deadLetters := queue.NewDeadLetters(q, t.Name())
				t.Cleanup(deadLetters.Close)
				dead, err := deadLetters.List(t.Context(), 1)
				require.NoError(t, err)
				require.Equal(t, last.error, dead[0].Reason)
				require.Equal(t, len(c.attempts), dead[0].Attempts)
				require.Equal(t, "processor-job-x", dead[0].Job)
			}
		})
	}
}

func TestProcessNotesWhenItWas(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	began := time.Now()
	require.Equal(t, done, once(t, t.Context(), publish(t, event), newProcessor(s, nil)))
	r := record(t, s)
	require.Equal(t, "processor-job-x", r.Job)
	require.Equal(t, "processor-job-x", r.Runs[0].Job)
	require.Equal(t, 1, r.Runs[0].Attempt)
	require.WithinRange(t, r.Runs[0].StartedAt, began.Add(-time.Millisecond), r.Runs[0].ClaimedAt.Add(time.Millisecond))
	require.WithinRange(t, r.Runs[0].ClaimedAt, r.Runs[0].StartedAt, r.FinishedAt.Add(time.Millisecond))
}

// An earlier Job died between marking the record done and acknowledging.
func TestAMessageThatIsDoneIsOnlyAcknowledged(t *testing.T) {
	t.Parallel()
	s, d := &fakeStore{begin: func() error { return records.ErrDone }}, &fakeDelivery{}
	p := newProcessor(s, func(context.Context, contract.Message) error { panic("it works again") })
	require.Equal(t, done, p.process(t.Context(), d, time.Now()))
	require.Equal(t, []string{"begin"}, s.calls)
	require.Equal(t, "ack", d.settled)
}

func TestAMessageThatCanNeverWorkIsADeadLetter(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"not JSON":      "hello",
		"no name":       `{"content":"b"}`,
		"a name twice":  `{"name":"a","name":"b"}`,
		"another shape": `["a"]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := publish(t, body)
			s := &fakeStore{}
			stopped, stop := context.WithCancel(t.Context())
			stop() // even a Job that is told to stop does not leave it to the next one
			require.Equal(t, deadLettered, once(t, stopped, c, newProcessor(s, nil)))
			require.Empty(t, s.calls)
			requireLeft(t, c, 0, 1)
		})
	}
}

// Given back at once, it would be the next one that a Job gets, without end.
func TestADeadLetterThatCannotBeMovedIsTriedAgain(t *testing.T) {
	t.Parallel()
	d := &fakeDelivery{full: true}
	p := newProcessor(&fakeStore{}, func(context.Context, contract.Message) error { return permanent(errors.New("never")) })
	require.Equal(t, crashed, p.process(t.Context(), d, time.Now()))
	require.Equal(t, "retry", d.settled)
}

// A producer that was upgraded first adds fields, and some write a byte order mark.
func TestAMessageMayHaveMoreThanWeKnow(t *testing.T) {
	t.Parallel()
	c := publish(t, "\ufeff"+`{"version":2,"name":"a"}`)
	require.Equal(t, done, once(t, t.Context(), c, newProcessor(&fakeStore{}, nil)))
	requireLeft(t, c, 0, 0)
}

func TestToldToStopItGivesTheMessageBackAtOnce(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(s *fakeStore, p *processor, stop func()){
		"before it stores": func(_ *fakeStore, _ *processor, stop func()) { stop() },
		"while MongoDB is away": func(s *fakeStore, _ *processor, stop func()) {
			s.begin = func() error { stop(); return errors.New("away") }
		},
		"while it works": func(_ *fakeStore, p *processor, stop func()) {
			p.work = func(ctx context.Context, _ contract.Message) error {
				stop()
				<-ctx.Done()
				return errors.New("cut off")
			}
		},
		"while it marks it as done": func(s *fakeStore, _ *processor, stop func()) {
			s.finish = func() error { stop(); return errors.New("away") }
		},
		"while it notes a failure": func(s *fakeStore, p *processor, stop func()) {
			p.work = func(context.Context, contract.Message) error { return errors.New("boom") }
			s.fail = func() error { stop(); return errors.New("away") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, d := &fakeStore{}, &fakeDelivery{}
			ctx, cancel := context.WithCancelCause(t.Context())
			p := newProcessor(s, nil)
			prepare(s, &p, func() { cancel(errStopped) })
			require.Equal(t, released, p.process(ctx, d, time.Now()))
			require.Equal(t, "release", d.settled)
		})
	}
}

func TestWorkThatTakesTooLong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		work    func(ctx context.Context) error
		outcome outcome
		took    time.Duration
		calls   []string
	}{
		"and ends with its context": {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, retried, time.Minute, []string{"begin", "retrying"}},
		"and is done just in time":  {func(ctx context.Context) error { <-ctx.Done(); return nil }, done, time.Minute, []string{"begin", "finish"}},
		"and never returns":         {func(context.Context) error { time.Sleep(time.Hour); return nil }, crashed, time.Minute + stopPatience, []string{"begin", "retrying"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, d := &fakeStore{}, &fakeDelivery{}
				p := newProcessor(s, func(ctx context.Context, _ contract.Message) error { return c.work(ctx) })
				p.workTimeout = time.Minute
				began := time.Now()
				require.Equal(t, c.outcome, p.process(t.Context(), d, began))
				require.Equal(t, c.took, time.Since(began))
				require.Equal(t, c.calls, s.calls)
				time.Sleep(time.Hour) // work's goroutine ends
			})
		})
	}
}

func TestMongoDBAwayForTooLong(t *testing.T) {
	t.Parallel()
	away := func() error { return errors.New("no server") }
	for name, s := range map[string]*fakeStore{
		"when it stores":          {begin: away},
		"when it marks as done":   {finish: away},
		"when it notes a failure": {fail: away},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDelivery{}
				p := newProcessor(s, func(context.Context, contract.Message) error {
					if s.fail != nil {
						return permanent(errors.New("boom"))
					}
					return nil
				})
				p.retryTimeout = time.Minute
				began := time.Now()
				require.Equal(t, released, p.process(t.Context(), d, began))
				require.Equal(t, time.Minute, time.Since(began))
				require.Greater(t, len(s.calls), 20, "it tries more than once")
				require.Equal(t, "release", d.settled)
			})
		})
	}
}

func TestMongoDBAwayForAMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, d := &fakeStore{}, &fakeDelivery{}
		s.begin = func() error {
			if len(s.calls) < 3 {
				return errors.New("no server")
			}
			return nil
		}
		require.Equal(t, done, newProcessor(s, nil).process(t.Context(), d, time.Now()))
		require.Equal(t, []string{"begin", "begin", "begin", "finish"}, slices.Clone(s.calls))
	})
}

// The connection is lost with the message: RabbitMQ already has it back.
func TestAnAcknowledgementThatCannotBeSent(t *testing.T) {
	t.Parallel()
	c := publish(t, event)
	consumer := contracttest.Consumer(t, c)
	d, err := consumer.Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	require.Equal(t, released, newProcessor(&fakeStore{finish: consumer.Close}, nil).process(t.Context(), d, time.Now()))
	contracttest.Waiting(t, contracttest.Channel(t, c), c.Queue, 1)
}
