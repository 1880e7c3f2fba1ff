// raw does what the services do, with the raw clients and nothing else: it publishes
// messages, works on one, or reads all records. bench compares the services with it.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"
)

var (
	queue = cmp.Or(os.Getenv("RABBITMQ_QUEUE"), "task_queue")
	body  = []byte(`{"name":"record1","content":"content1"}`)
)

func main() {
	clients := flag.Int("clients", 1, "publish: messages without a confirm at a time")
	lasts := flag.Duration("for", time.Second, "publish: how long")
	messages := flag.Int("messages", 0, "reset: messages to leave in the queue")
	flag.Parse()
	ctx := context.Background()
	var err error
	switch flag.Arg(0) {
	case "publish":
		err = publish(*clients, *lasts)
	case "work":
		err = work(ctx)
	case "read":
		err = read(ctx)
	case "reset":
		err = reset(ctx, *messages)
	case "version":
		err = version()
	default:
		err = errors.New("the command must be publish, work, read, reset or version")
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

// publish prints how many messages per second were confirmed.
func publish(clients int, lasts time.Duration) error {
	_, ch, err := dial()
	if err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return err
	}
	go func() {
		for r := range ch.NotifyReturn(make(chan amqp.Return)) {
			panic("returned: " + r.ReplyText)
		}
	}()
	began := time.Now()
	sent := make([]int, clients)
	var all errgroup.Group
	for i := range clients {
		all.Go(func() error {
			for time.Since(began) < lasts {
				if err := send(ch, amqp.Publishing{}); err != nil {
					return err
				}
				sent[i]++
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	total := 0
	for _, n := range sent {
		total += n
	}
	fmt.Println(float64(total) / time.Since(began).Seconds())
	return nil
}

// send returns when the message is confirmed.
func send(ch *amqp.Channel, m amqp.Publishing) error {
	m.ContentType, m.DeliveryMode, m.Body = "application/json", amqp.Persistent, body
	confirm, err := ch.PublishWithDeferredConfirm("", queue, true, false, m)
	if err != nil {
		return err
	}
	if !confirm.Wait() {
		return errors.New("not confirmed")
	}
	return nil
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
	db, name := cmp.Or(os.Getenv("MONGODB_DB"), "sample-db"), cmp.Or(os.Getenv("MONGODB_COLLECTION"), "sample-collection")
	return client, client.Database(db).Collection(name), nil
}

// work dials both servers, takes one message, inserts it and acknowledges it. It
// logs the claim as processor-job does.
func work(ctx context.Context) error {
	conn, ch, err := dial()
	if err != nil {
		return err
	}
	client, records, err := collection()
	if err != nil {
		return err
	}
	if err := client.Ping(ctx, nil); err != nil { // before it, nothing is dialled
		return err
	}
	d, ok, err := ch.Get(queue, false)
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("the queue is empty")
	}
	claimed := time.Now()
	var e struct{ Name, Content string }
	if err := json.Unmarshal(d.Body, &e); err != nil {
		return err
	}
	if _, err := records.InsertOne(ctx, bson.D{{Key: "name", Value: e.Name}, {Key: "content", Value: e.Content}}); err != nil {
		return err
	}
	if err := d.Ack(false); err != nil {
		return err
	}
	fmt.Printf(`{"time":%q,"msg":"claimed"}`, claimed.Format(time.RFC3339Nano))
	return errors.Join(conn.Close(), client.Disconnect(ctx))
}

// read reads all records in the order of GET /data and decodes none. It prints the
// seconds, the records and their bytes.
func read(ctx context.Context) error {
	client, records, err := collection()
	if err != nil {
		return err
	}
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
	n, bytes := 0, 0
	for cursor.Next(ctx) {
		n++
		bytes += len(cursor.Current)
	}
	fmt.Println(time.Since(began).Seconds(), n, bytes)
	return errors.Join(cursor.Err(), client.Disconnect(ctx))
}

// reset leaves so many messages in the queue, and no records. FerretDB reads the
// whole collection for an update whose filter is more than an _id: old records would
// slow down the next Job.
func reset(ctx context.Context, messages int) error {
	conn, ch, err := dial()
	if err != nil {
		return err
	}
	client, records, err := collection()
	if err != nil {
		return err
	}
	if _, err := records.DeleteMany(ctx, bson.D{}); err != nil {
		return err
	}
	if _, err := ch.QueuePurge(queue, false); err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return err
	}
	for i := range messages {
		id := fmt.Sprintf("%d-%d", time.Now().UnixNano(), i)
		if err := send(ch, amqp.Publishing{MessageId: id, Timestamp: time.Now()}); err != nil {
			return err
		}
	}
	return errors.Join(conn.Close(), client.Disconnect(ctx))
}

// version prints RabbitMQ's.
func version() error {
	conn, _, err := dial()
	if err != nil {
		return err
	}
	fmt.Println(conn.Properties["version"])
	return conn.Close()
}
