package main

import (
	"context"
	"log/slog"

	"keda-p2/services/sandbox/freeport"
)

// up runs everything until ctx ends, which is no error.
func up(ctx context.Context, b *sandbox) error {
	if b.addr == "" && freeport.Free(8080) {
		b.addr = "127.0.0.1:8080"
	}
	b.metrics = true
	if err := b.startAll(ctx, slog.New(slog.NewTextHandler(b.out, nil))); err != nil {
		return err
	}
	b.say(`
Open %[1]s/ in a browser: send a burst there, and see its Jobs.
Or try, in another terminal:

  curl -X POST '%[1]s/send?name=record1&content=content1'
  curl '%[1]s/data'

Metrics: http://%[2]s/metrics and %[3]s

Ctrl-C stops everything and leaves nothing behind.
`, b.url, b.admin, b.rabbitmq.MetricsURL)
	running := b.untilFailure(ctx)
	<-running.Done()
	if ctx.Err() == nil {
		return context.Cause(running)
	}
	t := b.scaler.Totals()
	b.say("\nStopping after %d Jobs: %d succeeded, %d failed.", t.Started, t.Succeeded, t.Failed)
	return nil
}
