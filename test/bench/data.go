package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"keda-p2/services/contract/records"
)

const (
	manyRecords = 1_000_000
	fewRecords  = 1_000
	dataGoal    = 0.5
	firstGoal   = 1.5
	pageGoal    = 1.5
	growthGoal  = 32 << 20
)

func (b *bench) mongo() (*mongo.Client, error) {
	o := options.Client().ApplyURI("mongodb://" + b.MongoDB.Host + ":" + b.MongoDB.Port)
	if b.MongoDB.User != "" {
		o.SetAuth(options.Credential{Username: b.MongoDB.User, Password: b.MongoDB.Password, AuthSource: b.MongoDB.AuthSource})
	}
	return mongo.Connect(o)
}

// recordID numbers records in the order in which they were stored.
func recordID(i int) string { return fmt.Sprintf("019a0000-0000-7000-8000-%012d", i) }

// store fills a collection with n records like those of the tutorial, all done.
func (b *bench) store(ctx context.Context, name string, n int) error {
	client, err := b.mongo()
	if err != nil {
		return err
	}
	defer client.Disconnect(ctx) //nolint:errcheck // nothing is in flight
	c := client.Database(b.MongoDB.DB).Collection(name)
	if err := c.Drop(ctx); err != nil {
		return err
	}
	began := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	const batch = 5000
	docs := make([]any, 0, batch)
	for i := range n {
		at := began.Add(time.Duration(i) * time.Millisecond)
		job := fmt.Sprintf("processor-job-%05d-abcde", i%100_000)
		docs = append(docs, records.Record{
			ID: recordID(i), Name: "record1", Content: "content1", Status: records.Done, Job: job, Attempts: 1,
			SentAt: at, StoredAt: at, FinishedAt: at.Add(20 * time.Second), ChangedAt: at.Add(20 * time.Second),
			Runs: []records.Run{{Job: job, Attempt: 1, StartedAt: at, ClaimedAt: at}},
		})
		if len(docs) == batch || i == n-1 {
			if _, err := c.InsertMany(ctx, docs, options.InsertMany().SetOrdered(false)); err != nil {
				return err
			}
			docs = docs[:0]
		}
		if (i+1)%100_000 == 0 {
			b.say("%d records stored", i+1)
		}
	}
	_, err = c.CountDocuments(ctx, bson.D{{Key: "_id", Value: recordID(n - 1)}})
	return err
}

// read is what was measured of one answer with records.
type read struct {
	first, all     float64 // seconds
	records, bytes int
}

func (r read) rate() float64 { return float64(r.bytes) / r.all }

func (b *bench) readRaw(ctx context.Context, collection string) (read, error) {
	out, err := output(ctx, b.env(map[string]string{"MONGODB_COLLECTION": collection}), b.program("raw"), "read")
	if err != nil {
		return read{}, err
	}
	var r read
	_, err = fmt.Sscan(string(out), &r.first, &r.all, &r.records, &r.bytes)
	return r, err
}

// readApp reads an answer to its end without looking at it.
func readApp(ctx context.Context, url string) (read, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return read{}, err
	}
	began := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return read{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body)
		return read{}, fmt.Errorf("GET %s: %s %s", url, response.Status, body)
	}
	r := read{first: time.Since(began).Seconds()}
	buffer := make([]byte, 256<<10)
	for {
		n, err := response.Body.Read(buffer)
		r.bytes += n
		if err == io.EOF {
			r.all = time.Since(began).Seconds()
			return r, nil
		}
		if err != nil {
			return r, err
		}
	}
}

func benchData(ctx context.Context, b *bench) error {
	b.say("storing %d records", manyRecords)
	many, few := "bench-many", "bench-few"
	if err := b.store(ctx, few, fewRecords); err != nil {
		return err
	}
	if err := b.store(ctx, many, manyRecords); err != nil {
		return err
	}
	app, err := b.startApp(ctx, map[string]string{"MONGODB_COLLECTION": many})
	if err != nil {
		return err
	}
	defer app.stop()
	little, err := b.startApp(ctx, map[string]string{"MONGODB_COLLECTION": few})
	if err != nil {
		return err
	}
	defer little.stop()
	before, err := resident(app.process.Pid(), "VmRSS")
	if err != nil {
		return err
	}
	var raw, ours, rawFirst, oursFirst, pageMany, pageFew []float64
	for round := range b.rounds {
		turns := []func() error{
			func() error {
				r, err := b.readRaw(ctx, many)
				rawFirst = append(rawFirst, r.first)
				return note(&raw)(r.rate(), err)
			},
			func() error {
				r, err := readApp(ctx, app.url+"/data")
				oursFirst = append(oursFirst, r.first)
				return note(&ours)(r.rate(), err)
			},
		}
		for i := range turns {
			if err := turns[(round+i)%len(turns)](); err != nil {
				return err
			}
		}
		page := func(url string, n int) (float64, error) {
			r, err := readApp(ctx, fmt.Sprintf("%s/data?limit=100&after=%s", url, recordID(n/2)))
			return r.all, err
		}
		if err := note(&pageMany)(page(app.url, manyRecords)); err != nil {
			return err
		}
		if err := note(&pageFew)(page(little.url, fewRecords)); err != nil {
			return err
		}
		b.say("round %d of %d: raw %.1f MB/s, first batch after %.2f s; GET /data %.1f MB/s, first byte after %.2f s; limit=100: %.4f s, of %d records %.4f s",
			round+1, b.rounds, last(raw)/1e6, last(rawFirst), last(ours)/1e6, last(oursFirst), last(pageMany), fewRecords, last(pageFew))
	}
	peak, err := resident(app.process.Pid(), "VmHWM")
	if err != nil {
		return err
	}
	of, first, page := ratios(ours, raw), ratios(oursFirst, rawFirst), ratios(pageMany, pageFew)
	b.print("\n| %d records | raw cursor | GET /data | ratio | |", manyRecords)
	b.print("| --- | ---: | ---: | ---: | --- |")
	b.print("| MB a second | %.1f | %.1f | %s | %s |", median(raw)/1e6, median(ours)/1e6, spread(of), atLeast(of, dataGoal))
	b.print("| first batch, first byte, s | %.2f | %.2f | %s | %s |", median(rawFirst), median(oursFirst), spread(first), atMost(first, firstGoal))
	b.print("| the service's memory grew by | | %s | | %s |", mib(peak-before), verdict(peak-before < growthGoal))
	b.print("| limit=100 and after, ms: of %d records, of %d | %.1f | %.1f | %s | %s |",
		fewRecords, manyRecords, 1000*median(pageFew), 1000*median(pageMany), spread(page), atMost(page, pageGoal))
	return nil
}
