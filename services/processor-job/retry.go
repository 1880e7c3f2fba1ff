package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"keda-p2/services/contract/records"
)

const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
	// tryTimeout bounds one try. On a connection that has fallen silent it would use up
	// all the time, while the next try on a new one may succeed at once.
	tryTimeout = 15 * time.Second
)

// retry calls f with growing pauses until it succeeds, or ctx or the timeout ends. Its
// error is then the last one of f, or the cause of ctx. A refusal is tried again like all
// else: it may be mended meanwhile, and a Job that ended at once would be replaced at once.
func retry(ctx context.Context, timeout time.Duration, log *slog.Logger, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		try, stop := context.WithTimeout(limited, tryTimeout)
		err := f(try)
		stop()
		if err == nil || errors.Is(err, records.ErrDone) {
			return err
		}
		// the error of the call that the timeout cut off says only that
		if last == nil || limited.Err() == nil {
			last = err
		}
		if limited.Err() == nil {
			log.WarnContext(ctx, "will try again", "reason", err.Error(), "in", pause.String())
		}
		select {
		case <-time.After(pause):
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("gave up after %s: %w", timeout, last)
		}
	}
}
