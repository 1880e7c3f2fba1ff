package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract"
)

var (
	// ErrUnavailable means that RabbitMQ does not have the message.
	ErrUnavailable = errors.New("RabbitMQ is not available")
	// ErrUnconfirmed means that RabbitMQ may have the message or may not. It is
	// safe to publish it again under the same id.
	ErrUnconfirmed = errors.New("RabbitMQ did not confirm the message")
)

const (
	minRedial = 100 * time.Millisecond
	maxRedial = 5 * time.Second
)

// Publisher publishes messages over one connection, which Run keeps alive. The
// library's own recovery is not used: it does not cover the first connection,
// gives up after some tries, and cannot tell a publisher whether a message
// that was in flight arrived.
type Publisher struct {
	cfg     Config
	name    string
	timeout time.Duration
	log     *slog.Logger
	session atomic.Pointer[session] // never nil

	connects, returns atomic.Uint64
}

// session is one connection with one channel in confirm mode, or why there is none.
type session struct {
	problem  error
	ch       *amqp.Channel
	blocked  atomic.Bool
	confirms atomic.Uint64
	returned sync.Map                // ids of messages that no queue took
	use      context.Context         // ends when the session is of no more use
	end      context.CancelCauseFunc // ends it; the first cause counts
}

// NewPublisher returns a publisher that waits at most timeout for a confirm.
// The name is the connection's, as RabbitMQ's management page shows it.
func NewPublisher(c Config, name string, timeout time.Duration, log *slog.Logger) *Publisher {
	p := &Publisher{cfg: c, name: name, timeout: timeout, log: log}
	p.setProblem(errors.New("not connected yet"))
	return p
}

// Run connects, and connects again whenever the connection is lost, until ctx
// ends. Then it closes the connection: end ctx only after the last Publish.
func (p *Publisher) Run(ctx context.Context) {
	for wait := minRedial; ctx.Err() == nil; wait = min(2*wait, maxRedial) {
		conn, ch, err := open(ctx, p.cfg, p.name)
		if err == nil {
			s := newSession(conn, ch)
			p.session.Store(s)
			p.connects.Add(1)
			p.log.Info("connected to RabbitMQ", "queue", p.cfg.Queue)
			select {
			case <-s.use.Done():
				p.setProblem(fmt.Errorf("connection lost: %w", p.cfg.explain(context.Cause(s.use))))
				_ = conn.CloseDeadline(time.Now()) // nobody waits any longer for its confirms
			case <-ctx.Done():
				p.setProblem(context.Cause(ctx))
				_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
			}
			wait = minRedial
		} else {
			p.setProblem(err)
		}
		if ctx.Err() == nil {
			p.log.Warn("no connection to RabbitMQ, will try again", "reason", p.Ready(), "in", wait.String())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// Ready returns nil when messages can be published, or why they cannot.
func (p *Publisher) Ready() error { return p.session.Load().ready() }

func (s *session) ready() error {
	if s.problem == nil && s.blocked.Load() {
		return errors.New("publishing is blocked by a memory or disk alarm")
	}
	return s.problem
}

// Connects returns how many connections were made: all but the first are reconnects.
func (p *Publisher) Connects() uint64 { return p.connects.Load() }

// Returns returns how many messages came back because there was no queue for them.
func (p *Publisher) Returns() uint64 { return p.returns.Load() }

// Publish returns nil once RabbitMQ has stored the message in the queue. Any
// other outcome is an ErrUnavailable or, when the message may have arrived all
// the same, an ErrUnconfirmed. It never takes much longer than the timeout.
func (p *Publisher) Publish(ctx context.Context, m contract.Message) error {
	publishing, err := encode(m)
	if err != nil {
		return err
	}
	s := p.session.Load()
	if err := s.ready(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, fmt.Errorf("no answer within %s", p.timeout))
	defer cancel()
	before := s.confirms.Load()
	// mandatory: without it RabbitMQ confirms a message that no queue takes
	confirmation, err := s.ch.PublishWithDeferredConfirm("", p.cfg.Queue, true, false, publishing)
	if errors.Is(err, amqp.ErrClosed) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	// A node that was cut off leaves its connections open. When it confirms nothing, neither
	// this message nor another one, a new connection may lead to a node that does.
	silence := time.AfterFunc(p.timeout, func() {
		if !confirmation.Acked() && s.confirms.Load() == before && !s.blocked.Load() {
			s.end(fmt.Errorf("no message was confirmed within %s", p.timeout))
		}
	})
	acked, err := confirmation.WaitContext(ctx)
	if err != nil { // the timer goes on: a client that hangs up early does not hide the silence
		return fmt.Errorf("%w: %w", ErrUnconfirmed, context.Cause(ctx))
	}
	silence.Stop()
	s.confirms.Add(1)
	if !acked {
		// the library also resolves with false when the channel is closed
		if s.ch.IsClosed() {
			return fmt.Errorf("%w: the connection was lost", ErrUnconfirmed)
		}
		return fmt.Errorf("%w: it refused the message", ErrUnavailable)
	}
	if _, returned := s.returned.Load(m.ID); returned {
		p.returns.Add(1)
		s.end(errors.New("a queue is gone")) // a new session declares the queue again
		return fmt.Errorf("%w: the queue %s is gone and will be declared again", ErrUnavailable, p.cfg.Queue)
	}
	return nil
}

// newSession also starts the goroutines that watch the connection. They end when the
// library closes their Go channels, which it does with the connection.
func newSession(conn *amqp.Connection, ch *amqp.Channel) *session {
	s := &session{ch: ch}
	s.use, s.end = context.WithCancelCause(context.Background())
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	go func() { s.end(cmp.Or(<-closed, amqp.ErrClosed)) }() // nil when we have closed it
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	go func() {
		for b := range blocked {
			s.blocked.Store(b.Active)
		}
	}()
	// A return comes before its confirm, but on another Go channel. The library
	// hands each return to both of these before it reads on, so when it gets to
	// the confirm the first copy has been noted.
	returns := ch.NotifyReturn(make(chan amqp.Return))
	noted := ch.NotifyReturn(make(chan amqp.Return))
	go func() {
		for r := range returns {
			s.returned.Store(r.MessageId, struct{}{})
			<-noted
		}
	}()
	return s
}

func (p *Publisher) setProblem(err error) { p.session.Store(&session{problem: err}) }
