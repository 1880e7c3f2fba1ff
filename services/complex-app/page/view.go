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
	// interval is the pause between two polls of a server.
	interval = time.Second
	// pollTimeout bounds one poll. The longest is the first, which reads all records
	// that the page keeps: up to 64 MB.
	pollTimeout = 15 * time.Second
)

type publisher interface{ Ready() error }

type counter interface {
	Count(context.Context) (queue.Counts, error)
	Close()
}

type store interface {
	Changed(ctx context.Context, after time.Time, limit int64, states ...records.Status) iter.Seq2[records.Record, error]
	Count(context.Context) (int64, error)
}

type deadLetters interface {
	List(ctx context.Context, limit int) ([]queue.DeadLetter, error)
}

// Run polls the servers until ctx ends. Each has its own pace, so that one that
// hangs does not hide the other.
func (p *Page) Run(ctx context.Context) {
	defer p.counter.Close()
	var polls sync.WaitGroup
	for what, poll := range map[string]func(context.Context) error{
		"messages": p.pollQueue, "records": p.pollRecords, "dead letters": p.pollDead,
	} {
		polls.Go(func() {
			for failed := false; ctx.Err() == nil; {
				limited, cancel := context.WithTimeout(ctx, pollTimeout)
				err := poll(limited)
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
	polls.Wait()
}

// pollQueue counts the messages.
func (p *Page) pollQueue(ctx context.Context) error {
	counts, err := p.counter.Count(ctx)
	p.state.setCounts(counts, p.publisher.Ready() == nil, err)
	return err
}

// pollRecords reads the records that have changed since the last poll.
func (p *Page) pollRecords(ctx context.Context) error {
	since, count := p.state.cursor()
	found, err := p.changedRecords(ctx, since)
	var stored *int64
	if err == nil && (count || len(found) > 0) {
		stored = new(int64)
		*stored, err = p.store.Count(ctx)
	}
	p.state.applyRecords(found, since.IsZero(), stored, err)
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

// pollDead lists the dead letters when that is needed: it takes them out of their
// queue for a moment.
func (p *Page) pollDead(ctx context.Context) error {
	if !p.state.needsDead() {
		return nil
	}
	letters, err := p.dead.List(ctx, maxDead)
	if err == nil {
		p.state.setDead(letters)
	}
	return err
}
