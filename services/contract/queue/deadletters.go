package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/mod/semver"
)

var (
	// ErrNoDeadLetter means that there is no dead letter with the given id.
	ErrNoDeadLetter = errors.New("there is no dead letter with this id")
	// ErrCutShort means that the context ended before all was done.
	ErrCutShort = errors.New("the time was up before all dead letters were seen")
)

const (
	// copyRound is how many dead letters are taken and copied at a time. All of their
	// bodies may be in memory.
	copyRound = 200
	// maxHeld is how many are held at a time where they need not be copied.
	maxHeld = 1000
	// lockPause is how often a visitor tries to get the lock that another process has.
	// Each try is an error in RabbitMQ's log.
	lockPause = 250 * time.Millisecond
	// returnPause is how often a visitor counts the letters that it has given back.
	returnPause = 10 * time.Millisecond
	// patience bounds the wait for letters that were counted and do not come, and for
	// those that were given back. It is also what a visit may still take when its
	// context has ended.
	patience = 5 * time.Second
)

// DeadLetters lists dead letters, sends them back and discards them. It uses one
// connection, opened when it is first needed and again after it was lost. Any number of
// goroutines may use it: they are served one at a time.
//
// AMQP cannot read a message without taking it, and a message that is given back counts
// as delivered. Our queue has no limit for that, but the delivery limit of an operator's
// policy wins, and RabbitMQ then drops the letter. So a look must not be counted.
// RabbitMQ 4.3 and later do not count a basic.nack. With older versions each letter is
// replaced by a copy, which is in the queue before the letter is removed: a crash between
// the two leaves both, under one id. A letter that a crash gave back, which is counted,
// is replaced by a copy at the next look.
type DeadLetters struct {
	cfg  Config
	name string

	turn chan struct{} // who has put something in here may use the following
	conn *amqp.Connection
	// ch stays open: RabbitMQ queues up acknowledgements, and forgets those that it has
	// not come to when their channel is closed.
	ch       *amqp.Channel
	returned <-chan amqp.Return // has room for a whole round, or the library would block
	nackFree bool               // RabbitMQ does not count a basic.nack
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
// them in their queue. They are the oldest ones. Before RabbitMQ 4.3, which has copies
// at its end after a look, a queue of more than limit shows others the next time.
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
	err = d.alone(ctx, func() (err error) {
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

// visit is one walk along the dead letters.
type visit struct {
	*DeadLetters
	see  func(amqp.Delivery) fate
	hold bool // give letters that are kept back at the end, in place of copies

	seen, held, removed int
}

// visit shows the first letters, at most limit, to see. It returns how many of them were
// removed.
func (d *DeadLetters) visit(ctx context.Context, limit int, see func(amqp.Delivery) fate) (int, error) {
	v := visit{DeadLetters: d, see: see}
	err := d.alone(ctx, func() error {
		total, err := d.count()
		if err != nil {
			return err
		}
		// no more than are there now: one that is sent back may die again
		limit, size := min(limit, total), copyRound
		if v.hold = d.nackFree && limit <= maxHeld; v.hold {
			size = maxHeld
		}
		for before := -1; before < v.seen && v.seen < limit && ctx.Err() == nil; {
			before = v.seen // when a round sees none, somebody else has taken the rest
			if err := v.round(min(size, limit-v.seen)); err != nil {
				return err
			}
		}
		if v.held > 0 {
			if err := v.giveBack(total - v.removed); err != nil {
				return err
			}
		}
		if v.seen < limit && ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrCutShort, context.Cause(ctx))
		}
		return nil
	})
	return v.removed, err
}

// round takes up to n letters and finishes with them, so that a visit can end after each
// round.
func (v *visit) round(n int) error {
	// A prefetch of n and no acknowledgement before the cancel: RabbitMQ delivers n
	// letters and no more. To get them one by one would take a round trip each.
	if err := v.ch.Qos(n, 0, false); err != nil {
		return err
	}
	v.rounds++ // RabbitMQ 3.10 crashes on the tag of a consumer that has open acknowledgements
	tag := fmt.Sprint("dead-letters-", v.rounds)
	letters, err := v.ch.Consume(v.cfg.DeadQueue(), tag, false, false, false, false, nil)
	if err != nil {
		return err
	}
	var (
		done    []uint64 // the tags of letters that need not come back
		copies  []*amqp.DeferredConfirmation
		removed int
	)
	cancel := func() { _ = v.ch.Cancel(tag, false) } // which ends the loop
	stalled := time.AfterFunc(patience, cancel)      // somebody else has taken the rest
	defer stalled.Stop()
	taken := 0
	for l := range letters {
		stalled.Reset(patience)
		if taken++; taken == n {
			cancel()
		}
		v.seen++
		to := v.see(l)
		if to == keep && v.hold && header[int64](l, deliveryCount) == 0 {
			v.held++
			continue
		}
		done = append(done, l.DeliveryTag)
		key, m := v.cfg.DeadQueue(), republish(l)
		if to == redrive {
			key, m = v.cfg.Queue, revive(l, v.cfg.MaxAttempts)
		}
		if to != keep {
			removed++
		}
		if to != discard {
			confirmation, err := v.ch.PublishWithDeferredConfirm("", key, true, false, m)
			if err != nil {
				return err
			}
			copies = append(copies, confirmation)
		}
	}
	for _, confirmation := range copies {
		if !confirmation.Wait() {
			return ErrUnconfirmed
		}
	}
	if len(v.returned) > 0 {
		return errors.New("a queue is gone")
	}
	if v.held == 0 {
		err = v.ch.Ack(0, true) // one for all is much faster
	}
	for i := 0; i < len(done) && v.held > 0 && err == nil; i++ {
		err = v.ch.Ack(done[i], false)
	}
	if err == nil {
		v.removed += removed
	}
	return err
}

// giveBack returns the letters that are held and waits until so many are in the queue:
// the next visitor would miss those that are still on their way.
func (v *visit) giveBack(want int) error {
	err := v.ch.Nack(0, true, true) // all of them
	for deadline := time.Now().Add(patience); err == nil && time.Now().Before(deadline); {
		var n int
		if n, err = v.count(); n >= want {
			break
		}
		<-time.After(returnPause)
	}
	return err
}

func (d *DeadLetters) count() (int, error) {
	q, err := d.ch.QueueDeclarePassive(d.cfg.DeadQueue(), true, false, false, false, nil)
	return q.Messages, err
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
	if d.conn == nil || d.conn.IsClosed() {
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
	var unlock func() error
	if err = d.probe(); err == nil {
		unlock, err = d.lock(ctx)
	}
	if err == nil {
		err = do()
		if err == nil || errors.Is(err, ErrCutShort) {
			err = errors.Join(err, unlock())
		}
	}
	if err != nil && !errors.Is(err, ErrCutShort) {
		_ = conn.CloseDeadline(time.Now())
		err = fmt.Errorf("%w: dead letters: %w", ErrUnavailable, err)
	}
	return err
}

func (d *DeadLetters) connect(ctx context.Context) (err error) {
	if d.conn, err = Dial(ctx, d.cfg, d.name); err != nil {
		return err
	}
	conn := d.conn
	defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })()
	// An alarm would hold up what was begun until its end.
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	go func() { // ends with the connection
		for range blocked {
			_ = conn.CloseDeadline(time.Now())
		}
	}()
	d.ch, err = openChannel(conn, d.cfg)
	if err != nil {
		_ = conn.CloseDeadline(time.Now().Add(closeTimeout))
		return err
	}
	d.returned = d.ch.NotifyReturn(make(chan amqp.Return, maxHeld))
	version, _ := conn.Properties["version"].(string)
	d.nackFree = semver.Compare("v"+version, "v4.3") >= 0
	return nil
}

// probe publishes a message that goes nowhere. RabbitMQ tells of an alarm only those who
// publish, and better before they have taken letters.
func (d *DeadLetters) probe() error {
	confirmation, err := d.ch.PublishWithDeferredConfirm("", d.cfg.lockQueue(), false, false, amqp.Publishing{})
	if err == nil && !confirmation.Wait() {
		err = ErrUnconfirmed
	}
	return err
}

// lock waits until this connection alone has a certain exclusive queue. RabbitMQ deletes
// it when the connection ends, however it ends.
func (d *DeadLetters) lock(ctx context.Context) (unlock func() error, err error) {
	name := d.cfg.lockQueue()
	for {
		ch, err := d.conn.Channel()
		if err != nil {
			return nil, err
		}
		_, err = ch.QueueDeclare(name, false, true, true, false, nil)
		if err == nil {
			return func() error {
				_, err := ch.QueueDelete(name, false, false, false)
				return errors.Join(err, ch.Close())
			}, nil
		}
		var held *amqp.Error
		if !errors.As(err, &held) || held.Code != amqp.ResourceLocked {
			return nil, err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another process looks at them: %w", ErrCutShort, context.Cause(ctx))
		}
	}
}
