package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	turnTime = 2 * time.Second // of one subject; wrk takes whole seconds only

	batchLines = 10_000 // the most that one request may have
	// batchInFlight is the number of raw messages without a confirm: more are not
	// faster.
	batchInFlight = 256
)

//go:embed send.lua
var sendLua []byte

// send measures POST /send: wrk's clients, each with one request at a time. The raw
// client has as many messages without a confirm as there are clients.
func (b *bench) send(ctx context.Context) error {
	apps, stop, err := b.startApps(ctx)
	defer stop()
	if err != nil {
		return err
	}
	var all []comparison
	for _, clients := range []int{1, 16, 64} {
		c := comparison{
			rows:  []*row{newRow(fmt.Sprintf("POST /send, clients: %d, events/s", clients), goal{AtLeast: 0.55})},
			turns: []turn{{raw, func(ctx context.Context) ([]float64, error) { return b.publish(ctx, clients) }}},
		}
		for _, a := range apps {
			c.turns = append(c.turns, turn{a.subject, func(ctx context.Context) ([]float64, error) { return b.wrk(ctx, a.url, clients) }})
		}
		all = append(all, c)
	}
	if err := b.compare(ctx, all...); err != nil {
		return err
	}
	return b.addPeak("complex-app's peak while 64 clients send, MiB", apps)
}

// addPeak adds a row with the most memory that each app has had.
func (b *bench) addPeak(name string, apps []app) error {
	r := newRow(name, goal{})
	for _, a := range apps {
		peak, err := resident(a.process.Pid(), "VmHWM")
		if err != nil {
			return err
		}
		r.Values[a.subject] = []float64{peak}
	}
	b.Rows = append(b.Rows, r)
	return nil
}

// wrk sends the tutorial's request and returns the requests per second.
func (b *bench) wrk(ctx context.Context, url string, clients int) ([]float64, error) {
	script := filepath.Join(b.dir, "send.lua")
	if err := os.WriteFile(script, sendLua, 0o600); err != nil {
		return nil, err
	}
	out, err := output(ctx, "wrk", nil, "-t1", "-c", strconv.Itoa(clients), "-d", fmt.Sprintf("%.0fs", turnTime.Seconds()),
		"--timeout", "30s", "-s", script, url+"/send?name=record1&content=content1")
	if err != nil {
		return nil, err
	}
	var l struct{ Requests, Microseconds, Failed float64 }
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &l); err != nil || l.Failed > 0 || l.Requests == 0 {
		return nil, fmt.Errorf("requests failed, or wrk did (%v):\n%s", err, out)
	}
	return []float64{l.Requests / l.Microseconds * 1e6}, nil
}

// publish returns the messages per second that RabbitMQ confirms to the raw client.
func (b *bench) publish(ctx context.Context, inFlight int) ([]float64, error) {
	out, err := b.raw(ctx, nil, "-clients", strconv.Itoa(inFlight), "-for", turnTime.String(), "publish")
	if err != nil {
		return nil, err
	}
	rate, err := strconv.ParseFloat(out, 64)
	return []float64{rate}, err
}

// batch measures POST /send/batch of the current build only: an older one may have
// another protocol.
func (b *bench) batch(ctx context.Context) error {
	a, err := b.startApp(ctx, b.builds[0])
	if err != nil {
		return err
	}
	defer a.stop()
	var all []comparison
	for _, clients := range []int{1, 2} { // complex-app takes two at a time
		all = append(all, comparison{
			rows: []*row{newRow(fmt.Sprintf("POST /send/batch, clients: %d, events/s", clients), goal{AtLeast: 0.60})},
			turns: []turn{
				{raw, func(ctx context.Context) ([]float64, error) { return b.publish(ctx, batchInFlight) }},
				{current, func(ctx context.Context) ([]float64, error) { return sendBatches(ctx, a.url, clients) }},
			},
		})
	}
	return b.compare(ctx, all...)
}

// sendBatches sends full batches, one after the other from each client, and returns
// the events per second.
func sendBatches(ctx context.Context, url string, clients int) ([]float64, error) {
	body := strings.Repeat(`{"name":"record1","content":"content1"}`+"\n", batchLines)
	began := time.Now()
	sent := make([]int, clients)
	all, ctx := errgroup.WithContext(ctx)
	for i := range clients {
		all.Go(func() error {
			for time.Since(began) < turnTime {
				if err := sendBatch(ctx, url, body); err != nil {
					return err
				}
				sent[i] += batchLines
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	total := 0
	for _, n := range sent {
		total += n
	}
	return []float64{float64(total) / time.Since(began).Seconds()}, nil
}

func sendBatch(ctx context.Context, url, body string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/send/batch", strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-ndjson")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer struct{ Accepted int }
	if err := json.Unmarshal(content, &answer); err != nil || answer.Accepted != batchLines {
		return fmt.Errorf("not all was accepted: %s: %.500s", response.Status, content)
	}
	return nil
}
