// Package live knows how the system is doing now: what waits, what is being
// worked on and what has become of it. It looks at RabbitMQ and MongoDB once a
// second, however many watch, and only while somebody does.
package live

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"time"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

const (
	// pollInterval is the pause between two looks at a server, and pollTimeout
	// the longest that one may take: it counts as down then.
	pollInterval = time.Second
	pollTimeout  = 3 * time.Second
	listTimeout  = 10 * time.Second // of a look at the dead letters, and the pause after one that failed
	// statusTimeout bounds the wait for a first look.
	statusTimeout = 2 * time.Second
	// sendInterval is the least time between two updates, and clockInterval the
	// longest: it tells a watcher that we are still here.
	sendInterval  = 250 * time.Millisecond
	clockInterval = 5 * time.Second
	// linger is how long to go on when nobody watches: a page that is loaded again
	// finds all as it was.
	linger = 5 * time.Second

	// maxWatchers bounds the memory and the sockets that pages take.
	maxWatchers = 200
	// backlog is how many updates a watcher may be behind before it is dropped.
	backlog = 16
)

var (
	// ErrTooMany is returned by Watch when maxWatchers watch already.
	ErrTooMany = errors.New("too many pages are open")
	// ErrClosed is returned by Watch after Close.
	ErrClosed = errors.New("the service is shutting down")
)

type (
	publisher interface{ Ready() error }

	counter interface {
		Count(context.Context) (queue.Counts, error)
		Close()
	}

	store interface {
		Changed(ctx context.Context, after time.Time, limit int64, states ...records.Status) iter.Seq2[records.Record, error]
		Count(context.Context) (int64, error)
	}

	deadLetters interface {
		List(ctx context.Context, limit int) ([]queue.DeadLetter, error)
	}
)

// View is the system as one complex-app sees it.
type View struct {
	publisher publisher
	counter   counter
	store     store
	dead      deadLetters
	log       *slog.Logger

	inbox inbox

	mu       sync.Mutex // also while a snapshot is made, which takes milliseconds
	state    state
	watchers map[*Watcher]struct{}
	shown    int           // watchers that are not GET /status
	snapshot []byte        // what a new watcher gets first, until the next update
	polled   chan struct{} // closed when a server has been looked at
	cancel   func()        // ends the polling; nil when there is none
	stopped  chan struct{} // closed when it has ended
	idle     *time.Timer   // ends the polling when nobody watches
	closed   bool
}

// Watcher receives updates.
type Watcher struct {
	// Updates yields JSON objects, the first of them the whole state. It is closed
	// when the watcher is too slow or the view is closed.
	Updates <-chan []byte

	updates chan []byte // nil for GET /status
	view    *View
}

// New returns a view that looks at nothing yet.
func New(p publisher, c counter, s store, d deadLetters, log *slog.Logger) *View {
	return &View{
		publisher: p, counter: c, store: s, dead: d, log: log,
		state: newState(), watchers: map[*Watcher]struct{}{}, polled: make(chan struct{}),
	}
}

// Accepted notes an event that RabbitMQ has taken: until a Job stores its record,
// nobody else knows its name. The sender waits for nothing.
func (v *View) Accepted(m contract.Message) {
	v.inbox.put(accepted{ID: m.ID, Name: shorten(m.Name), SentAt: ms(m.SentAt)})
}

// Redriven notes that dead letters were sent back, to look again at what is left.
func (v *View) Redriven() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state.stale = true
}

// Watch adds a watcher, who must Close it.
func (v *View) Watch() (*Watcher, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.shown >= maxWatchers {
		return nil, ErrTooMany
	}
	if v.snapshot == nil {
		v.state.accept(v.inbox.empty())
		var err error
		if v.snapshot, err = json.Marshal(v.state.whole()); err != nil {
			return nil, err
		}
	}
	w := &Watcher{updates: make(chan []byte, backlog), view: v}
	w.Updates = w.updates
	w.updates <- v.snapshot
	return w, v.join(w)
}

// join starts the polling for the first watcher.
func (v *View) join(w *Watcher) error {
	if v.closed {
		return ErrClosed
	}
	v.watchers[w] = struct{}{}
	if w.updates != nil {
		v.shown++
	}
	if v.idle != nil {
		v.idle.Stop()
		v.idle = nil
	}
	if v.cancel != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	before, stopped := v.stopped, make(chan struct{})
	v.cancel, v.stopped = cancel, stopped
	go func() {
		defer close(stopped)
		if before != nil {
			<-before // its last look may still be under way
		}
		v.run(ctx)
	}()
	return nil
}

// Close ends the watching.
func (w *Watcher) Close() {
	w.view.mu.Lock()
	defer w.view.mu.Unlock()
	w.view.drop(w)
}

// drop removes a watcher, and stops the polling some time after the last one.
func (v *View) drop(w *Watcher) {
	if _, ok := v.watchers[w]; !ok {
		return
	}
	delete(v.watchers, w)
	if w.updates != nil {
		v.shown--
		close(w.updates)
	}
	if len(v.watchers) == 0 && !v.closed {
		v.idle = time.AfterFunc(linger, func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			if len(v.watchers) == 0 {
				v.stop()
			}
		})
	}
}

func (v *View) stop() {
	if v.cancel != nil {
		v.cancel()
		v.cancel = nil
		v.state.pause()
	}
}

// Close drops all watchers, so that a server can shut down, and waits for the end
// of the polling.
func (v *View) Close() {
	v.mu.Lock()
	v.closed = true
	for w := range v.watchers {
		v.drop(w)
	}
	v.stop()
	stopped := v.stopped
	v.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
}

// Status returns how things are now. What did not answer in time is down.
func (v *View) Status(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	v.mu.Lock()
	defer v.mu.Unlock()
	w := &Watcher{view: v}
	_ = v.join(w) // when closed, the state is what it was
	defer v.drop(w)
	since := time.Now().Add(-pollInterval)
	for ctx.Err() == nil && !v.closed && !v.state.polledSince(since) {
		polled := v.polled
		v.mu.Unlock()
		select {
		case <-polled:
		case <-ctx.Done():
		}
		v.mu.Lock()
	}
	return v.state.status(since)
}

// run polls until ctx ends. Each server has its own pace, so that the one that
// hangs does not hide the other.
func (v *View) run(ctx context.Context) {
	var polls sync.WaitGroup
	polls.Go(func() { every(ctx, pollInterval, v.pollQueue) })
	polls.Go(func() { every(ctx, pollInterval, v.pollRecords) })
	polls.Go(func() { every(ctx, pollInterval, v.pollDead) })
	every(ctx, sendInterval, v.send)
	polls.Wait()
	v.counter.Close()
}

func every(ctx context.Context, interval time.Duration, f func(context.Context)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		f(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// update applies what a poll has found, unless the polling has ended meanwhile.
func (v *View) update(ctx context.Context, f func(*state)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	f(&v.state)
	close(v.polled)
	v.polled = make(chan struct{})
}

// send tells the watchers what is new.
func (v *View) send(context.Context) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.snapshot = nil
	v.state.accept(v.inbox.empty())
	news, ok := v.state.news(time.Now())
	if !ok {
		return
	}
	body, err := json.Marshal(news)
	if err != nil {
		v.log.Error("no update for the page", "reason", err.Error())
		return
	}
	for w := range v.watchers {
		if w.updates == nil {
			continue
		}
		select {
		case w.updates <- body:
		default:
			v.drop(w) // a new connection gets the whole state, and is up to date
		}
	}
}

// pollQueue counts the messages.
func (v *View) pollQueue(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	counts, err := v.counter.Count(limited)
	up := err == nil && v.publisher.Ready() == nil
	v.update(ctx, func(s *state) {
		if err != nil {
			s.uncounted()
			return
		}
		s.counted(counts, up)
	})
}

// pollRecords reads the records that have changed, all that fit into the window
// when there is nothing to compare with.
func (v *View) pollRecords(ctx context.Context) {
	v.mu.Lock()
	since, count := v.state.cursor()
	v.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()

	all := since.IsZero()
	found, err := v.changed(limited, since, records.Processing, records.Done)
	if err == nil && !all && len(found) == window { // some may have been passed over
		all = true
		found, err = v.changed(limited, time.Time{}, records.Processing, records.Done)
	}
	if err == nil && all && len(found) == window {
		// those that are worked on for long have not changed for long
		var more []Record
		more, err = v.changed(limited, time.Time{}, records.Processing)
		found = append(more, found...)
	}
	var total *int64
	if err == nil && (count || len(found) > 0) {
		var n int64
		n, err = v.store.Count(limited)
		total = &n
	}
	v.update(ctx, func(s *state) {
		if err != nil {
			s.unread()
			return
		}
		s.read(found, all)
		if total != nil {
			s.total(total)
		}
	})
}

func (v *View) changed(ctx context.Context, since time.Time, states ...records.Status) ([]Record, error) {
	var found []Record
	for r, err := range v.store.Changed(ctx, since, window, states...) {
		if err != nil {
			return nil, err
		}
		found = append(found, newRecord(r))
	}
	return found, nil
}

// pollDead lists the dead letters, which takes them from their queue for a moment,
// and only when that is needed.
func (v *View) pollDead(ctx context.Context) {
	v.mu.Lock()
	needed := v.state.listDead()
	v.mu.Unlock()
	if !needed {
		return
	}
	limited, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	dead, err := v.dead.List(limited, maxDead)
	v.update(ctx, func(s *state) { s.listed(dead, err == nil) })
}

// inbox holds accepted events until the next update, with a lock of its own.
type inbox struct {
	mu     sync.Mutex
	events []accepted
}

func (i *inbox) put(a accepted) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events = append(i.events, a)
	if len(i.events) == 2*maxAccepted { // nobody watches
		i.events = append([]accepted(nil), i.events[maxAccepted:]...)
	}
}

func (i *inbox) empty() []accepted {
	i.mu.Lock()
	defer i.mu.Unlock()
	events := i.events
	i.events = nil
	return events
}
