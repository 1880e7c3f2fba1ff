package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// turn is how long one subject has, in whole seconds for wrk
	turn = 2 * time.Second

	sendGoal  = 0.60 // of the raw client
	p99Goal   = 3    // times the median
	batchGoal = 0.90 // of the raw client
	batchSize = 100_000
)

var clientCounts = []int{1, 16, 64, 256}

//go:embed send.lua
var sendLua []byte

// load is what wrk measured.
type load struct {
	Requests, Microseconds, Failed int
	P50, P99                       float64 // microseconds
}

func (l load) rate() float64 { return float64(l.Requests) / float64(l.Microseconds) * 1e6 }

// wrk sends the tutorial's request from so many clients.
func (b *bench) wrk(ctx context.Context, url string, clients int, lasts time.Duration) (load, error) {
	script := filepath.Join(b.dir, "send.lua")
	if err := os.WriteFile(script, sendLua, 0o600); err != nil {
		return load{}, err
	}
	// wrk knows whole seconds only
	out, err := output(ctx, nil, "wrk", "-t1", "-c", strconv.Itoa(clients), "-d", fmt.Sprintf("%.0fs", lasts.Seconds()),
		"--latency", "--timeout", "30s", "-s", script, url+"/send?name=record1&content=content1")
	if err != nil {
		return load{}, err
	}
	var l load
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &l); err != nil {
		return l, fmt.Errorf("wrk printed %q: %w", out, err)
	}
	if l.Failed > 0 || l.Requests == 0 {
		return l, fmt.Errorf("%d of %d requests failed:\n%s", l.Failed, l.Requests, out)
	}
	return l, nil
}

// publishRaw returns the messages a second that the raw client gets confirmed.
func (b *bench) publishRaw(ctx context.Context, inFlight int) (float64, error) {
	out, err := output(ctx, b.env(nil), b.program("raw"), "-clients", strconv.Itoa(inFlight), "-for", turn.String(), "publish")
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(string(bytes.TrimSpace(out)), 64)
}

func benchSend(ctx context.Context, b *bench) error {
	app, err := b.startApp(ctx, nil)
	if err != nil {
		return err
	}
	defer app.stop()
	bare, err := b.startBare(ctx)
	if err != nil {
		return err
	}
	defer bare.stop()

	type row struct{ raw, bare, app, p50, p99 []float64 }
	rows := make([]row, len(clientCounts))
	var batchRaw, batch []float64
	for round := range b.rounds {
		for i, clients := range clientCounts {
			r := &rows[i]
			turns := []func() error{
				func() error { return note(&r.raw)(b.publishRaw(ctx, clients)) },
				func() error {
					l, err := b.wrk(ctx, bare.url, clients, turn)
					return note(&r.bare)(l.rate(), err)
				},
				func() error {
					l, err := b.wrk(ctx, app.url, clients, turn)
					r.p50, r.p99 = append(r.p50, l.P50), append(r.p99, l.P99)
					return note(&r.app)(l.rate(), err)
				},
			}
			if err := b.takeTurns(ctx, round, turns); err != nil {
				return err
			}
			b.say("round %d of %d, %d clients: raw %.0f, bare handler %.0f, POST /send %.0f a second",
				round+1, b.rounds, clients, last(r.raw), last(r.bare), last(r.app))
		}
		err := b.takeTurns(ctx, round, []func() error{
			func() error { return note(&batchRaw)(b.publishRaw(ctx, 256)) },
			func() error { return note(&batch)(sendBatch(ctx, app.url, batchSize)) },
		})
		if err != nil {
			return err
		}
		b.say("round %d of %d, 256 in flight: raw %.0f, POST /send/batch %.0f a second", round+1, b.rounds, last(batchRaw), last(batch))
	}

	b.print("| clients | raw | bare handler | POST /send | of raw | of the bare handler | p99 / median | |")
	b.print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
	for i, clients := range clientCounts {
		r := rows[i]
		ofRaw, ofBare, tail := ratios(r.app, r.raw), ratios(r.app, r.bare), ratios(r.p99, r.p50)
		reached := median(ofRaw) >= sendGoal && median(ofBare) >= 1 && (clients != 64 || median(tail) <= p99Goal)
		b.print("| %d | %.0f | %.0f | %.0f | %s | %s | %s | %s |", clients,
			median(r.raw), median(r.bare), median(r.app), spread(ofRaw), spread(ofBare), spread(tail), verdict(reached))
	}
	of := ratios(batch, batchRaw)
	b.print("\n| many events in one request | raw, 256 in flight | POST /send/batch | of raw | |")
	b.print("| --- | ---: | ---: | ---: | --- |")
	b.print("| %d events | %.0f | %.0f | %s | %s |", batchSize, median(batchRaw), median(batch), spread(of), atLeast(of, batchGoal))
	return nil
}

// takeTurns begins each round with another subject, and each turn with an empty
// queue.
func (b *bench) takeTurns(ctx context.Context, round int, turns []func() error) error {
	for i := range turns {
		if err := b.purge(ctx); err != nil {
			return err
		}
		if err := turns[(round+i)%len(turns)](); err != nil {
			return err
		}
	}
	return nil
}

// sendBatch sends n events in one request and returns how many a second were
// accepted.
func sendBatch(ctx context.Context, url string, n int) (float64, error) {
	body, writer := io.Pipe()
	go func() {
		lines := bufio.NewWriterSize(writer, 64<<10)
		for range n {
			_, _ = lines.WriteString(`{"name":"record1","content":"content1"}` + "\n")
		}
		_ = lines.Flush()
		_ = writer.Close()
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/send/batch", body)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/x-ndjson")
	began := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var accepted int
	var lastLine string
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if lastLine = lines.Text(); strings.Contains(lastLine, `"status":202`) {
			accepted++
		}
	}
	if accepted != n {
		return 0, fmt.Errorf("%s, %d of %d accepted; %s %w", response.Status, accepted, n, lastLine, errors.Join(lines.Err()))
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// note keeps a measurement.
func note(values *[]float64) func(float64, error) error {
	return func(value float64, err error) error {
		*values = append(*values, value)
		return err
	}
}

func last(values []float64) float64 { return values[len(values)-1] }
