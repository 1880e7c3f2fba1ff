package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"keda-p2/services/contract/records"
)

// data measures GET /data, and the memory that it takes: for ten times as many
// records, and for records 50 times as large, it must be the same.
func (b *bench) data(ctx context.Context) error {
	for _, size := range []struct {
		name             string
		records, content int // content in bytes
		goal             goal
	}{
		{"100,000 records", 100_000, 8, goal{}},
		{"1,000,000 records", 1_000_000, 8, goal{AtLeast: 0.40}},
		{"20,000 records of 16 KB", 20_000, 16_000, goal{}},
	} {
		if err := b.readAll(ctx, size.name, size.records, size.content, size.goal); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) readAll(ctx context.Context, name string, n, content int, g goal) error {
	docs, err := storedRecords(n, strings.Repeat("content1", content/8))
	if err != nil {
		return err
	}
	replay, err := startReplay(docs)
	if err != nil {
		return err
	}
	defer replay.Close()
	host, port, err := net.SplitHostPort(replay.Addr().String())
	if err != nil {
		return err
	}
	on := []string{"MONGODB_HOST=" + host, "MONGODB_PORT=" + port, "MONGODB_USER=", "MONGODB_PASSWORD="}
	apps, stop, err := b.startApps(ctx, on...)
	defer stop()
	if err != nil {
		return err
	}
	readRaw := func(ctx context.Context) ([]float64, error) { return b.readRaw(ctx, on, n) }
	if _, err := readRaw(ctx); err != nil { // the first time is slower
		return err
	}
	c := comparison{rows: []*row{newRow("GET /data, "+name+", MB/s", g)}, turns: []turn{{raw, readRaw}}}
	for _, a := range apps {
		c.turns = append(c.turns, turn{a.subject, func(ctx context.Context) ([]float64, error) { return getData(ctx, a.url, n) }})
	}
	if err := b.compare(ctx, c); err != nil {
		return err
	}
	return b.addPeak("complex-app's peak with "+name+", MiB", apps)
}

// storedRecords returns n records like the tutorial's, all done.
func storedRecords(n int, content string) ([]bson.Raw, error) {
	began := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	docs := make([]bson.Raw, n)
	for i := range docs {
		at := began.Add(time.Duration(i) * time.Millisecond)
		var err error
		docs[i], err = bson.Marshal(records.Record{ // without what a projection takes away
			ID: fmt.Sprintf("019a0000-0000-7000-8000-%012d", i), Name: "record1", Content: content,
			Status: records.Done, Job: fmt.Sprintf("processor-job-%05d-abcde", i%100_000), Attempts: 1,
			SentAt: at, StoredAt: at, FinishedAt: at.Add(20 * time.Second),
		})
		if err != nil {
			return nil, err
		}
	}
	return docs, nil
}

// readRaw reads so many records with the raw client and returns the megabytes per
// second, of BSON.
func (b *bench) readRaw(ctx context.Context, on []string, records int) ([]float64, error) {
	out, err := b.raw(ctx, on, "read")
	if err != nil {
		return nil, err
	}
	var read, bytes int
	var seconds float64
	if _, err = fmt.Sscan(out, &seconds, &read, &bytes); err == nil && read != records {
		err = fmt.Errorf("%d of %d records", read, records)
	}
	return []float64{float64(bytes) / seconds / 1e6}, err
}

// getData reads so many records and returns the megabytes per second, of JSON.
func getData(ctx context.Context, url string, records int) ([]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/data", nil)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var read counter
	n, err := io.Copy(&read, response.Body)
	if err == nil && int(read) != records {
		err = fmt.Errorf("GET /data: %s, %d of %d records", response.Status, read, records)
	}
	return []float64{float64(n) / time.Since(began).Seconds() / 1e6}, err
}

// counter counts the records that are written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(bytes.Count(p, []byte("{")))
	return len(p), nil
}
