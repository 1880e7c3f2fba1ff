// raw does with the raw clients, and nothing around them, what the services do:
// publish messages, publish one for each HTTP request, work on one message. The
// benchmarks set the services against it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

var queue = os.Getenv("RABBITMQ_QUEUE")

func main() {
	clients := flag.Int("clients", 1, "publish: messages in flight")
	lasts := flag.Duration("for", time.Second, "publish: how long")
	addr := flag.String("addr", "", "serve: where")
	done := flag.Bool("done", false, "work: store by the message's id, and mark the record done")
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "publish":
		err = publish(*clients, *lasts)
	case "serve":
		err = serve(*addr)
	case "work":
		err = work(*done)
	case "read":
		err = read()
	default:
		err = errors.New("give one of publish, serve, work and read")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "raw:", err)
		os.Exit(1)
	}
}

func dial() (*amqp.Connection, *amqp.Channel, error) {
	uri := amqp.URI{Scheme: "amqp", Host: os.Getenv("RABBITMQ_HOST"), Vhost: "/",
		Username: os.Getenv("RABBITMQ_USER"), Password: os.Getenv("RABBITMQ_PASSWORD")}
	var err error
	if uri.Port, err = strconv.Atoi(os.Getenv("RABBITMQ_PORT")); err != nil {
		return nil, nil, err
	}
	conn, err := amqp.Dial(uri.String())
	if err != nil {
		return nil, nil, err
	}
	ch, err := conn.Channel()
	return conn, ch, err
}

// sender publishes on one channel.
type sender struct{ ch *amqp.Channel }

func newSender() (sender, error) {
	_, ch, err := dial()
	if err != nil {
		return sender{}, err
	}
	go func() {
		for r := range ch.NotifyReturn(make(chan amqp.Return)) {
			panic("returned: " + r.ReplyText)
		}
	}()
	return sender{ch}, ch.Confirm(false)
}

func (s sender) send(body []byte) error {
	confirm, err := s.ch.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{
		ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: body,
	})
	if err != nil {
		return err
	}
	if !confirm.Wait() {
		return errors.New("not confirmed")
	}
	return nil
}

// publish prints how many messages a second were confirmed.
func publish(clients int, lasts time.Duration) error {
	s, err := newSender()
	if err != nil {
		return err
	}
	body := []byte(`{"name":"record1","content":"content1"}`)
	var sent atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	began := time.Now()
	for range clients {
		all.Go(func() {
			for time.Since(began) < lasts {
				if err := s.send(body); err != nil {
					failed.Store(&err)
					return
				}
				sent.Add(1)
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	fmt.Println(float64(sent.Load()) / time.Since(began).Seconds())
	return nil
}

type event struct {
	Name    string `json:"name"`
	Content string `json:"content"`
}

// serve is the least handler that publishes the tutorial's event.
func serve(addr string) error {
	s, err := newSender()
	if err != nil {
		return err
	}
	http.HandleFunc("POST /send", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		body, err := json.Marshal(event{query.Get("name"), query.Get("content")})
		if err == nil {
			err = s.send(body)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write(body)
	})
	return http.ListenAndServe(addr, nil)
}

func collection() (*mongo.Client, *mongo.Collection, error) {
	o := options.Client().SetHosts([]string{net.JoinHostPort(os.Getenv("MONGODB_HOST"), os.Getenv("MONGODB_PORT"))})
	if user := os.Getenv("MONGODB_USER"); user != "" {
		o.SetAuth(options.Credential{Username: user, Password: os.Getenv("MONGODB_PASSWORD")})
	}
	client, err := mongo.Connect(o)
	if err != nil {
		return nil, nil, err
	}
	return client, client.Database(os.Getenv("MONGODB_DB")).Collection(os.Getenv("MONGODB_COLLECTION")), nil
}

// work dials both servers, takes one message, inserts it and acknowledges it. It
// prints when it has claimed and stored it, in nanoseconds since 1970. With done it
// makes one record of a redelivered message, too, as the least that processor-job
// must do.
func work(done bool) error {
	conn, ch, err := dial()
	if err != nil {
		return err
	}
	client, records, err := collection()
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := client.Ping(ctx, nil); err != nil { // before it, nothing is dialled
		return err
	}
	d, ok, err := ch.Get(queue, false)
	if err != nil || !ok {
		return fmt.Errorf("no message: %w", err)
	}
	claimed := time.Now()
	var e event
	if err := json.Unmarshal(d.Body, &e); err != nil {
		return err
	}
	id := bson.D{{Key: "_id", Value: d.MessageId}}
	record := bson.D{{Key: "name", Value: e.Name}, {Key: "content", Value: e.Content}}
	if done {
		_, err = records.UpdateOne(ctx, id, bson.D{{Key: "$setOnInsert", Value: record}}, options.UpdateOne().SetUpsert(true))
	} else {
		_, err = records.InsertOne(ctx, record)
	}
	if err != nil {
		return err
	}
	stored := time.Now()
	if done {
		if _, err := records.UpdateOne(ctx, id, bson.D{{Key: "$set", Value: bson.D{{Key: "status", Value: "done"}}}}); err != nil {
			return err
		}
	}
	if err := d.Ack(false); err != nil {
		return err
	}
	fmt.Println(claimed.UnixNano(), stored.UnixNano())
	return errors.Join(conn.Close(), client.Disconnect(ctx))
}

// read reads all records in the order in which they were stored, and decodes
// none. It prints the time to the first batch and to the last in seconds, and the
// number of records and bytes.
func read() error {
	client, records, err := collection()
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := client.Ping(ctx, nil); err != nil {
		return err
	}
	began := time.Now()
	cursor, err := records.Find(ctx, bson.D{}, options.Find().
		SetSort(bson.D{{Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}}).
		SetProjection(bson.D{{Key: "runs", Value: 0}, {Key: "changedAt", Value: 0}}))
	if err != nil {
		return err
	}
	first := time.Since(began)
	n, bytes := 0, 0
	for cursor.Next(ctx) {
		n++
		bytes += len(cursor.Current)
	}
	fmt.Println(first.Seconds(), time.Since(began).Seconds(), n, bytes)
	return errors.Join(cursor.Err(), client.Disconnect(ctx))
}
