package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"keda-p2/services/contract/records"
)

const (
	someRecords = 20_000 // what FerretDB sorts in a second
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

// forget deletes the records that are done. FerretDB reads all of a collection for
// an update, unless its filter is nothing but an _id (sqlite/collection.go): what is
// measured would be how many there are. MongoDB goes by the index on _id.
func (b *bench) forget(ctx context.Context) error {
	client, err := b.mongo()
	if err != nil {
		return err
	}
	defer client.Disconnect(ctx) //nolint:errcheck // nothing is in flight
	_, err = client.Database(b.MongoDB.DB).Collection(b.MongoDB.Collection).
		DeleteMany(ctx, bson.D{{Key: "status", Value: bson.D{{Key: "$ne", Value: records.Processing}}}})
	return err
}

// recordID numbers records in the order in which they were stored.
func recordID(i int) string { return fmt.Sprintf("019a0000-0000-7000-8000-%012d", i) }

// storedRecords makes n records like those of the tutorial, all done.
func storedRecords(n int) ([]bson.Raw, error) {
	began := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	docs := make([]bson.Raw, n)
	for i := range n {
		at := began.Add(time.Duration(i) * time.Millisecond)
		job := fmt.Sprintf("processor-job-%05d-abcde", i%100_000)
		var err error
		docs[i], err = bson.Marshal(records.Record{ // without what a projection takes away
			ID: recordID(i), Name: "record1", Content: "content1", Status: records.Done, Job: job, Attempts: 1,
			SentAt: at, StoredAt: at, FinishedAt: at.Add(20 * time.Second),
		})
		if err != nil {
			return nil, err
		}
	}
	return docs, nil
}

// read is what was measured of one answer with records.
type read struct {
	first, all     float64 // seconds
	records, bytes int
}

func (r read) rate() float64 { return float64(r.bytes) / r.all }

func (b *bench) readRaw(ctx context.Context, on map[string]string) (read, error) {
	out, err := output(ctx, b.env(on), b.program("raw"), "read")
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.print("\n| GET /data | raw cursor | GET /data | ratio | |")
	b.print("| --- | ---: | ---: | ---: | --- |")
	some, err := storedRecords(someRecords)
	if err != nil {
		return err
	}
	b.say("storing %d records in FerretDB", someRecords)
	if err := b.store(ctx, some); err != nil {
		return err
	}
	if err := b.compareData(ctx, fmt.Sprintf("%d records in FerretDB", someRecords), nil); err != nil {
		return err
	}

	all, err := storedRecords(manyRecords)
	if err != nil {
		return err
	}
	many, err := startReplay(ctx, all)
	if err != nil {
		return err
	}
	few, err := startReplay(ctx, all[:fewRecords])
	if err != nil {
		return err
	}
	if err := b.compareData(ctx, fmt.Sprintf("%d records, replayed", manyRecords), many.env()); err != nil {
		return err
	}
	return b.comparePages(ctx, few.env(), many.env())
}

// store fills the collection.
func (b *bench) store(ctx context.Context, docs []bson.Raw) error {
	client, err := b.mongo()
	if err != nil {
		return err
	}
	defer client.Disconnect(ctx) //nolint:errcheck // nothing is in flight
	c := client.Database(b.MongoDB.DB).Collection(b.MongoDB.Collection)
	if err := c.Drop(ctx); err != nil {
		return err
	}
	for batch := range slices.Chunk(docs, 5000) {
		if _, err := c.InsertMany(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) env() map[string]string {
	host, port, _ := net.SplitHostPort(r.Addr().String())
	return map[string]string{"MONGODB_HOST": host, "MONGODB_PORT": port, "MONGODB_USER": "", "MONGODB_PASSWORD": ""}
}

// compareData reads all records, raw and through the service.
func (b *bench) compareData(ctx context.Context, name string, on map[string]string) error {
	app, err := b.startApp(ctx, on)
	if err != nil {
		return err
	}
	defer app.stop()
	before, err := resident(app.process.Pid(), "VmRSS")
	if err != nil {
		return err
	}
	var raw, ours, rawFirst, oursFirst, hop []float64
	for round := range b.rounds {
		turns := []func() error{
			func() error {
				r, err := b.readRaw(ctx, on)
				rawFirst = append(rawFirst, r.first)
				return note(&raw)(r.rate(), err)
			},
			func() error {
				// as the raw client pings its server first
				h, err := readApp(ctx, app.url+"/healthz")
				if err != nil {
					return err
				}
				hop = append(hop, h.first)
				r, err := readApp(ctx, app.url+"/data")
				oursFirst = append(oursFirst, r.first)
				return note(&ours)(r.rate(), err)
			},
		}
		if err := b.takeTurns(ctx, round, turns); err != nil {
			return err
		}
		b.say("round %d of %d, %s: raw %.1f MB/s, first batch after %.1f ms; GET /data %.1f MB/s, first byte after %.1f ms",
			round+1, b.rounds, name, last(raw)/1e6, 1000*last(rawFirst), last(ours)/1e6, 1000*last(oursFirst))
	}
	peak, err := resident(app.process.Pid(), "VmHWM")
	if err != nil {
		return err
	}
	of, first := ratios(ours, raw), ratios(oursFirst, rawFirst)
	b.print("| %s: MB a second | %.1f | %.1f | %s | %s |", name, median(raw)/1e6, median(ours)/1e6, spread(of), atLeast(of, dataGoal))
	b.print("| first batch, first byte, ms | %.1f | %.1f | %s | %s |", 1000*median(rawFirst), 1000*median(oursFirst), spread(first), atMost(first, firstGoal))
	b.print("| a request without records just before, GET /healthz, ms | | %.1f | | |", 1000*median(hop))
	b.print("| the service's memory grew by | | %s | | %s |", mib(peak-before), verdict(peak-before < growthGoal))
	return nil
}

// comparePages reads a hundred records from the middle of few and of many.
func (b *bench) comparePages(ctx context.Context, few, many map[string]string) error {
	const times = 50 // one is over in a moment
	var urls [2]string
	for i, on := range []map[string]string{few, many} {
		app, err := b.startApp(ctx, on)
		if err != nil {
			return err
		}
		defer app.stop()
		urls[i] = fmt.Sprintf("%s/data?limit=100&after=%s", app.url, recordID([]int{fewRecords, manyRecords}[i]/2))
	}
	var took [2][]float64
	for round := range b.rounds {
		for i := range urls {
			which := (round + i) % len(urls)
			var all []float64
			for range times {
				r, err := readApp(ctx, urls[which])
				if err != nil {
					return err
				}
				all = append(all, r.all)
			}
			took[which] = append(took[which], 1000*median(all))
		}
	}
	of := ratios(took[1], took[0])
	b.print("| limit=100 and after, replayed, ms: of %d records, of %d | %.2f | %.2f | %s | %s |",
		fewRecords, manyRecords, median(took[0]), median(took[1]), spread(of), atMost(of, pageGoal))
	return nil
}
