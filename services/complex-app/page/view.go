package page

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

const (
	// interval is the pause between two looks at a server.
	interval = time.Second
	// lookTimeout bounds one look. The longest is the first, which reads all records
	// that the page keeps: up to 64 MB.
	lookTimeout = 15 * time.Second
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

// Run looks at the servers until ctx ends. Each has its own pace, so that one that
// hangs does not hide the other.
func (p *Page) Run(ctx context.Context) {
	defer p.counter.Close()
	var looks sync.WaitGroup
	for what, look := range map[string]func(context.Context) error{
		"messages": p.lookAtQueue, "records": p.lookAtRecords, "dead letters": p.lookAtDead,
	} {
		looks.Go(func() {
			for failed := false; ctx.Err() == nil; {
				limited, cancel := context.WithTimeout(ctx, lookTimeout)
				err := look(limited)
				cancel()
				if err != nil && !failed && ctx.Err() == nil {
					p.log.Warn("the page cannot see the "+what, "reason", err.Error())
				}
				failed = err != nil
				select {
				case <-time.After(interval):
				case <-ctx.Done():
				}
			}
		})
	}
	looks.Wait()
}

// lookAtQueue counts the messages.
func (p *Page) lookAtQueue(ctx context.Context) error {
	counts, err := p.counter.Count(ctx)
	if err != nil {
		p.state.queueDown()
	} else {
		p.state.setCounts(counts, p.publisher.Ready() == nil)
	}
	return err
}

// lookAtRecords reads the records that have changed since the last look.
func (p *Page) lookAtRecords(ctx context.Context) error {
	since, count := p.state.cursor()
	found, err := p.changedRecords(ctx, since)
	var stored *int64
	if err == nil && (count || len(found) > 0) {
		var n int64
		n, err = p.store.Count(ctx)
		stored = &n
	}
	if err != nil {
		p.state.recordsDown()
	} else {
		p.state.applyRecords(found, since.IsZero(), stored)
	}
	return err
}

// changedRecords returns at most window records that have changed. Without a time it
// returns as many of each state: what a Job has been working on for long has not
// changed for long.
func (p *Page) changedRecords(ctx context.Context, since time.Time) (found []record, err error) {
	queries := [][]records.Status{states}
	if since.IsZero() {
		queries = slices.Collect(slices.Chunk(states, 1))
	}
	for _, query := range queries {
		for r, err := range p.store.Changed(ctx, since, window, query...) {
			if err != nil {
				return nil, err
			}
			found = append(found, newRecord(r))
		}
	}
	return found, nil
}

// lookAtDead lists the dead letters when that is needed: it takes them out of their
// queue for a moment.
func (p *Page) lookAtDead(ctx context.Context) error {
	if !p.state.needsDead() {
		return nil
	}
	letters, err := p.dead.List(ctx, maxDead)
	if err == nil {
		p.state.setDead(letters)
	}
	return err
}
