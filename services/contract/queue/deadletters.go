package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

var (
	// ErrNoDeadLetter means that there is no dead letter with the given id.
	ErrNoDeadLetter = errors.New("there is no dead letter with this id")
	// ErrCutShort means that not all was done: the context ended, or letters did not come.
	ErrCutShort = errors.New("not all dead letters were seen")
)

const (
	// A visit takes letters in rounds, the first of one letter. Each next round may have
	// twice as many, as long as they would have no more than roundBytes in all if they
	// were like the last ones: the bodies of a round are in memory together.
	maxRound   = 256
	roundBytes = 1 << 20
	// lockPause is how often a visitor tries to get the lock that another process has.
	// Each try is an error in RabbitMQ's log.
	lockPause = 250 * time.Millisecond
	// patience bounds the wait for letters that were counted and do not come. It is also
	// what a visit may still take when its context has ended.
	patience = 5 * time.Second
)

// DeadLetters lists dead letters, sends them back and discards them. It uses one
// connection, opened when it is first needed and again after it was lost. Any number of
// goroutines may use it: they are served one at a time.
//
// AMQP cannot read a message without taking it, and a message that is given back counts
// as delivered, before RabbitMQ 4.3 always. Our queue has no limit for that, but the
// delivery limit of an operator's policy wins, and RabbitMQ then drops the letter. So a
// letter that was seen is replaced by a copy, at the end of the queue, which nobody has
// counted. The copy is there before the letter is removed: a crash between the two
// leaves both, under one id.
type DeadLetters struct {
	cfg  Config
	name string

	turn chan struct{} // a lock: its holder has put a value in, and may use what follows
	conn *amqp.Connection
	// ch stays open: RabbitMQ queues up acknowledgements, and forgets those that it has
	// not come to when their channel is closed.
	ch       *amqp.Channel
	returned <-chan amqp.Return // has room for a whole round, or the library would block
	rounds   int
}

// NewDeadLetters does not connect yet. The name is the connection's, as RabbitMQ's
// management page shows it.
func NewDeadLetters(c Config, name string) *DeadLetters {
	return &DeadLetters{cfg: c, name: name, turn: make(chan struct{}, 1)}
}

// Close waits for the visit that goes on, at most closeTimeout, and closes the connection.
func (d *DeadLetters) Close() {
	select {
	case d.turn <- struct{}{}:
		if d.conn != nil {
			_ = d.conn.CloseDeadline(time.Now().Add(closeTimeout))
		}
		<-d.turn
	case <-time.After(closeTimeout): // the end of the process ends it
	}
}

// List returns up to limit dead letters, sorted by the time of their death, and leaves
// them in their queue. When there are more than limit, the next call returns others.
func (d *DeadLetters) List(ctx context.Context, limit int) ([]DeadLetter, error) {
	found := []DeadLetter{}
	_, err := d.visit(ctx, limit, func(l amqp.Delivery) fate {
		found = append(found, readDeadLetter(l, d.cfg.MaxAttempts))
		return keep
	})
	slices.SortStableFunc(found, func(a, b DeadLetter) int { return a.DeadAt.Compare(b.DeadAt) })
	return found, err
}

// Redrive sends the dead letter with the given id back to the queue, or all of them
// when the id is empty, and returns how many it sent, also with an error. Each is
// confirmed in the queue before it is removed here: when this is interrupted, a message
// may be in both, under one id, which is one record all the same.
func (d *DeadLetters) Redrive(ctx context.Context, id string) (int, error) {
	return d.remove(ctx, id, redrive)
}

// Discard removes the dead letter with the given id, or all of them when the id is
// empty, and returns how many it removed, also with an error.
func (d *DeadLetters) Discard(ctx context.Context, id string) (n int, err error) {
	if id != "" {
		return d.remove(ctx, id, discard)
	}
	err = d.alone(ctx, func() (err error) { // reads none, and so removes also one that the library cannot read
		n, err = d.ch.QueuePurge(d.cfg.DeadQueue(), false)
		return err
	})
	return n, err
}

// remove goes on when it has found the id: there may be a second copy.
func (d *DeadLetters) remove(ctx context.Context, id string, to fate) (int, error) {
	n, err := d.visit(ctx, math.MaxInt, func(l amqp.Delivery) fate {
		if id == "" || l.MessageId == id {
			return to
		}
		return keep
	})
	if err == nil && id != "" && n == 0 {
		err = fmt.Errorf("%w: %s", ErrNoDeadLetter, id)
	}
	return n, err
}

// fate is what becomes of a dead letter that was seen.
type fate int

const (
	keep fate = iota
	redrive
	discard
)

// visit shows the first letters, at most limit, to see. It returns how many of them were
// removed.
func (d *DeadLetters) visit(ctx context.Context, limit int, see func(amqp.Delivery) fate) (removed int, err error) {
	err = d.alone(ctx, func() error {
		dead, err := d.ch.QueueDeclarePassive(d.cfg.DeadQueue(), true, false, false, false, nil)
		if err != nil {
			return err
		}
		if dead.Messages == 0 { // or its leader is silent for 250 ms, which only a get tells
			first, ok, err := get(d.conn, d.ch, d.cfg.DeadQueue())
			if err != nil || !ok {
				return err
			}
			if err := first.Nack(false, true); err != nil {
				return err
			}
			dead.Messages = 1 + int(first.MessageCount)
		}
		// no more than are there now: a copy must not be seen, and one that is sent back
		// may die again
		left := min(limit, dead.Messages)
		for size := 1; left > 0 && ctx.Err() == nil; {
			r, err := d.round(min(size, left), see)
			if err != nil {
				return err
			}
			if r.seen == 0 {
				return fmt.Errorf("%w: %d that were counted did not come", ErrCutShort, left)
			}
			removed += r.removed
			left -= r.seen
			size = max(1, min(2*size, maxRound, r.seen*roundBytes/max(1, r.bytes)))
		}
		if left > 0 {
			return fmt.Errorf("%w: %w", ErrCutShort, context.Cause(ctx))
		}
		return nil
	})
	return removed, err
}

// round is what became of some letters.
type round struct{ seen, bytes, removed int }

// round takes up to n letters and finishes with them, so that a visit can end after each
// round.
func (d *DeadLetters) round(n int, see func(amqp.Delivery) fate) (r round, err error) {
	// A prefetch of n and no acknowledgement before the cancel: RabbitMQ delivers n
	// letters and no more. To get them one by one would take a round trip each.
	if err := d.ch.Qos(n, 0, false); err != nil {
		return r, err
	}
	d.rounds++ // RabbitMQ 3.10 crashes on the tag of a consumer that has open acknowledgements
	tag := fmt.Sprint("dead-letters-", d.rounds)
	letters, err := d.ch.Consume(d.cfg.DeadQueue(), tag, false, false, false, false, nil)
	if err != nil {
		return r, err
	}
	cancel := func() { _ = d.ch.Cancel(tag, false) } // which ends the loop
	stalled := time.AfterFunc(patience, cancel)      // the queue has no leader, or somebody has emptied it
	defer stalled.Stop()
	var copies []*amqp.DeferredConfirmation
	for l := range letters {
		stalled.Reset(patience)
		r.seen++
		r.bytes += len(l.Body)
		if r.seen == n {
			cancel()
		}
		key, m := d.cfg.DeadQueue(), republish(l)
		switch see(l) {
		case discard:
			r.removed++
			continue
		case redrive:
			r.removed++
			key, m = d.cfg.Queue, revive(l, d.cfg.MaxAttempts)
		}
		confirmation, err := d.ch.PublishWithDeferredConfirm("", key, true, false, m)
		if err != nil {
			return r, err
		}
		copies = append(copies, confirmation)
	}
	for _, confirmation := range copies {
		if !confirmation.Wait() {
			return r, ErrUnconfirmed
		}
	}
	if len(d.returned) > 0 {
		return r, errors.New("a queue is gone")
	}
	return r, d.ch.Ack(0, true) // all of them
}

// alone calls do when nobody else, here or in another process, visits the dead letters.
// An error other than ErrCutShort closes the connection, which gives back what it has.
func (d *DeadLetters) alone(ctx context.Context, do func() error) (err error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%w: others look at them: %w", ErrCutShort, context.Cause(ctx))
	}
	if d.probe() != nil { // there is no connection yet, or it was lost since the last visit
		if err := d.connect(ctx); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	// The library's calls know no context. What was begun is finished if it can be.
	conn, ended := d.conn, make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(patience):
			_ = conn.CloseDeadline(time.Now())
		}
	})()
	defer close(ended)
	err = d.lock(ctx)
	if err == nil {
		err = do()
		if err == nil || errors.Is(err, ErrCutShort) {
			_, unlocked := d.ch.QueueDelete(d.cfg.lockQueue(), false, false, false)
			err = errors.Join(err, unlocked)
		}
	}
	if err != nil && !errors.Is(err, ErrCutShort) {
		_ = conn.CloseDeadline(time.Now())
		err = fmt.Errorf("%w: dead letters: %w", ErrUnavailable, err)
	}
	return err
}

func (d *DeadLetters) connect(ctx context.Context) error {
	conn, ch, err := open(ctx, d.cfg, d.name)
	if err != nil {
		return err
	}
	// An alarm would hold up what was begun until its end.
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	go func() { // ends with the connection
		for range blocked {
			_ = conn.CloseDeadline(time.Now())
		}
	}()
	d.conn, d.ch, d.returned = conn, ch, ch.NotifyReturn(make(chan amqp.Return, maxRound))
	return d.probe()
}

// probe publishes a message that goes nowhere. RabbitMQ tells of an alarm only those who
// publish, and better before they have taken letters.
func (d *DeadLetters) probe() error {
	if d.ch == nil {
		return amqp.ErrClosed
	}
	confirmation, err := d.ch.PublishWithDeferredConfirm("", d.cfg.lockQueue(), false, false, amqp.Publishing{})
	if err == nil && !confirmation.Wait() {
		err = ErrUnconfirmed
	}
	return err
}

// lock waits until this connection alone has a certain exclusive queue. RabbitMQ deletes
// it when the connection ends, unless its node is lost with it (4.3, docs/failures.md).
func (d *DeadLetters) lock(ctx context.Context) error {
	for {
		ch, err := d.conn.Channel() // of its own: a refusal closes it
		if err != nil {
			return err
		}
		if _, err = ch.QueueDeclare(d.cfg.lockQueue(), false, true, true, false, nil); err == nil {
			return ch.Close()
		}
		if held, ok := errors.AsType[*amqp.Error](err); !ok || held.Code != amqp.ResourceLocked {
			return err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: another process looks at them: %w", ErrCutShort, context.Cause(ctx))
		}
	}
}
