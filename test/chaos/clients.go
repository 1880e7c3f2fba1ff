package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	requestTimeout = 15 * time.Second
	minBackoff     = 100 * time.Millisecond
	maxBackoff     = 2 * time.Second
)

// sent is an event and what complex-app said to it.
type sent struct {
	event
	accepted time.Time // of the 202, zero without one
	tries    int
}

// clients send events as good clients do.
type clients struct {
	address string
	http    http.Client

	mu       sync.Mutex
	sent     []sent // those that are over
	accepted int
}

// run returns when n clients have sent all events, or ctx ends.
func (c *clients) run(ctx context.Context, events []event, n int) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(n)
	for _, e := range events {
		all.Go(func() error {
			s, err := c.send(ctx, e)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.sent = append(c.sent, s)
			if !s.accepted.IsZero() {
				c.accepted++
			}
			return err
		})
	}
	return all.Wait()
}

// send tries until the event is accepted or ctx ends, under one key. An answer
// that is neither 202 nor 503 is an error.
func (c *clients) send(ctx context.Context, e event) (sent, error) {
	s := sent{event: e}
	body, err := json.Marshal(map[string]string{"name": e.Name, "content": e.Content})
	if err != nil {
		return s, err
	}
	_ = pause(ctx, e.pause)
	for backoff := minBackoff; ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		s.tries++
		status, answer := c.post(ctx, e.ID, body)
		switch status {
		case http.StatusAccepted:
			s.accepted = time.Now()
			return s, nil
		case 0, http.StatusServiceUnavailable:
			_ = pause(ctx, backoff)
		default:
			return s, fmt.Errorf("complex-app answered %s with %d: %s", e.ID, status, answer)
		}
	}
	return s, nil
}

// post returns the status of the answer, or 0 when there was none.
func (c *clients) post(ctx context.Context, key string, body []byte) (int, []byte) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.address+"/send", bytes.NewReader(body))
	if err != nil {
		return 0, nil
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", key)
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body) // the status has said it
	return response.StatusCode, answer
}

func (c *clients) acceptedSoFar() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.accepted
}
