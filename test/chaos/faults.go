package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2/toxics"
	"golang.org/x/sync/errgroup"
)

// tally counts what has gone wrong so far, by its kind.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (t *tally) add(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n[kind]++
}

func (t *tally) of(kinds ...string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, kind := range kinds {
		n += t.n[kind]
	}
	return n
}

// inflict carries out the plan while the run goes on, until over is closed.
func (s *system) inflict(ctx context.Context, progress func() float64, over <-chan struct{}) error {
	all, ctx := errgroup.WithContext(ctx)
	for _, faults := range s.plan.faults {
		all.Go(func() error {
			for _, f := range faults {
				for progress() < f.at {
					select {
					case <-over:
						return nil
					case <-ctx.Done():
						return nil
					case <-time.After(20 * time.Millisecond):
					}
				}
				if err := s.commit(ctx, f); err != nil {
					return fmt.Errorf("%s %s: %w", f.kind, f.link, err)
				}
				s.tally.add(f.kind)
			}
			return nil
		})
	}
	return all.Wait()
}

func (s *system) commit(ctx context.Context, f fault) error {
	switch f.kind {
	case rabbitmqRestarts:
		if f.crash {
			s.rabbitmq.Kill()
		} else {
			s.rabbitmq.Stop()
		}
		return errors.Join(pause(ctx, f.lasts), again(ctx, func() error { return s.rabbitmq.Start(ctx) }))
	case mongodbRestarts:
		return s.restartMongoDB(ctx, f)
	case appRestarts:
		if err := s.checkApp(); err != nil {
			return err
		}
		if f.crash {
			s.app.Kill()
		} else {
			s.app.Stop(grace)
		}
		return again(ctx, func() error { return s.startApp(ctx) })
	default:
		return s.disturb(ctx, f)
	}
}

// restartMongoDB stops MongoDB, which cuts every connection wherever it is in
// its work, and starts it again on its data.
func (s *system) restartMongoDB(ctx context.Context, f fault) error {
	mine := []string{appToMongoDB, jobsToMongoDB}
	for _, link := range mine {
		s.locks[link].Lock()
		defer s.locks[link].Unlock()
		s.proxies[link].Stop()
	}
	s.mongodb.Stop()
	if err := pause(ctx, f.lasts); err != nil {
		return err
	}
	err := s.mongodb.Start(ctx)
	if err != nil {
		return err
	}
	for _, link := range mine {
		s.proxies[link].Upstream = net.JoinHostPort(s.mongodb.Host, s.mongodb.Port) // another port, which only the proxies see
		err = errors.Join(err, again(ctx, s.proxies[link].Start))
	}
	return err
}

// disturb cuts or stalls the connections of one proxy.
func (s *system) disturb(ctx context.Context, f fault) error {
	s.locks[f.link].Lock()
	defer s.locks[f.link].Unlock()
	proxy := s.proxies[f.link]
	if f.kind == down {
		proxy.Stop()
		return errors.Join(pause(ctx, f.lasts), again(ctx, proxy.Start))
	}
	toxic, err := json.Marshal(map[string]any{
		"name": f.kind, "type": f.kind, "stream": f.stream, "attributes": map[string]any{"bytes": f.bytes},
	})
	if err != nil {
		return err
	}
	if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(string(toxic))); err != nil {
		return err
	}
	return errors.Join(pause(ctx, f.lasts), proxy.Toxics.RemoveToxic(ctx, f.kind))
}

// stallToxic lets no byte through until it is removed. The bytes wait with their
// sender, as they do in TCP. Toxiproxy's latency would collect them, and take five
// seconds for each piece whose receiver has died meanwhile.
type stallToxic struct{}

func (*stallToxic) Pipe(stub *toxics.ToxicStub) { <-stub.Interrupt }

// again starts what was stopped. Its port was free meanwhile, and a Job's probe
// may have it, which does not live long.
func again(ctx context.Context, start func() error) (err error) {
	for range 20 {
		if err = start(); err == nil || pause(ctx, 500*time.Millisecond) != nil {
			break
		}
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
