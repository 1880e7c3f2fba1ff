package infra_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/infra"
)

const user, password = "us er", "a/b?c#d%\"\\'é$(x)\n"

func startRabbitMQ(t *testing.T) (*infra.RabbitMQ, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "with a space")
	require.NoError(t, os.Mkdir(dir, 0o700))
	r, err := infra.StartRabbitMQ(t.Context(), infra.RabbitMQConfig{
		Dir: dir, User: user, Password: password, Kind: os.Getenv("SANDBOX_RABBITMQ"),
		Say: func(text string) { t.Log(text) }, Metrics: true,
	})
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return r, dir
}

func channel(t *testing.T, r *infra.RabbitMQ, password string) (ch *amqp.Channel, err error) {
	t.Helper()
	for range 6 { // on a busy machine a login takes seconds, and a refusal three more
		if ch, err = login(t, r, password); !errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	return ch, err
}

func login(t *testing.T, r *infra.RabbitMQ, password string) (*amqp.Channel, error) {
	t.Helper()
	conn, err := queue.Dial(t.Context(), queue.Config{
		Server: config.Server{Host: r.Host, User: user, Password: password}, Port: config.Port(r.Port), VHost: "/",
	}, t.Name())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.Channel()
}

// processes returns the command lines of those that have dir in their
// environment: the node's and its epmd's.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	var found []string
	for _, file := range environs {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), dir) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	for i := range 2 { // side by side
		t.Run(fmt.Sprint("node ", i), func(t *testing.T) {
			t.Parallel()
			r, dir := startRabbitMQ(t)
			_, err := channel(t, r, "wrong")
			require.ErrorIs(t, err, amqp.ErrCredentials)
			ch, err := channel(t, r, password)
			require.NoError(t, err)
			_, err = ch.QueueDeclare("q", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
			require.NoError(t, err)
			require.NoError(t, ch.Confirm(false))
			confirm, err := ch.PublishWithDeferredConfirm("", "q", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
			require.NoError(t, err)
			require.True(t, confirm.Wait())
			ends := []func(){r.Kill, r.Stop}[:2*(1-i)] // enough for one of the nodes
			for _, end := range ends {                 // at once, while the queue is new
				end()
				<-r.Done()
				_, err = channel(t, r, password)
				require.Error(t, err)
				require.NoError(t, r.Start(t.Context()))
				ch, err := channel(t, r, password)
				require.NoError(t, err)
				require.Eventually(t, func() bool { // once it has elected its leader
					q, err := ch.QueueDeclarePassive("q", true, false, false, false, nil)
					return err == nil && q.Messages == 1
				}, 20*time.Second, 20*time.Millisecond)
			}

			require.Eventually(t, func() bool { // it counts every five seconds
				response, err := http.Get(r.MetricsURL)
				if err != nil {
					return false
				}
				defer response.Body.Close()
				metrics, err := io.ReadAll(response.Body)
				return err == nil && strings.Contains(string(metrics), `rabbitmq_queue_messages_ready{vhost="/",queue="q"} 1`)
			}, 20*time.Second, 20*time.Millisecond)

			if os.Getenv("SANDBOX_RABBITMQ") != "docker" {
				require.NotEmpty(t, processes(t, dir))
			}
			r.Close()
			// Erlang's helpers end by themselves when they notice
			require.Eventually(t, func() bool { return len(processes(t, dir)) == 0 }, 20*time.Second, 20*time.Millisecond)
		})
	}
}

func TestRabbitMQErrors(t *testing.T) {
	t.Parallel()
	_, err := infra.StartRabbitMQ(t.Context(), infra.RabbitMQConfig{Dir: t.TempDir(), Kind: "podman"})
	require.ErrorContains(t, err, `debian or docker, not from "podman"`)
}

// The embedded server, and with SANDBOX_MONGODB=docker the real one.
func TestMongoDB(t *testing.T) {
	db, err := infra.StartMongoDB(t.Context(), infra.MongoDBConfig{
		Dir: t.TempDir(), Kind: os.Getenv("SANDBOX_MONGODB"), Say: func(text string) { t.Log(text) },
	})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	for _, created := range []int64{1, 0} { // the second time after a restart
		client, err := mongo.Connect(options.Client().SetHosts([]string{db.Host + ":" + db.Port}))
		require.NoError(t, err)
		written, err := client.Database("db").Collection("c").UpdateOne(t.Context(),
			bson.D{{Key: "_id", Value: "a"}}, bson.D{{Key: "$set", Value: bson.D{{Key: "n", Value: 1}}}}, options.UpdateOne().SetUpsert(true))
		require.NoError(t, err)
		require.Equal(t, created, written.UpsertedCount)
		require.NoError(t, client.Disconnect(t.Context()))
		db.Stop()
		require.NoError(t, db.Start(t.Context()))
	}
}

func TestMongoDBErrors(t *testing.T) {
	_, err := infra.StartMongoDB(t.Context(), infra.MongoDBConfig{Dir: t.TempDir(), Kind: "debian"})
	require.ErrorContains(t, err, `embedded when nothing is set, not from "debian"`)
}

func TestFerretDB(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "50% of a?b#c")
	require.NoError(t, os.Mkdir(dir, 0o700))
	db, err := infra.StartFerretDB(dir)
	require.NoError(t, err)
	store, err := records.Open(records.Config{
		Server: config.Server{Host: db.Host}, Port: config.Port(db.Port), DB: "db", Collection: "c", AuthSource: "admin",
	}, t.Name())
	require.NoError(t, err)
	require.NoError(t, store.Ping(t.Context()))
	require.NoError(t, store.CreateIndexes(t.Context()))
	db.Close()
	require.Error(t, store.Ping(t.Context()))
	require.NoError(t, store.Close())

	_, err = infra.StartFerretDB(filepath.Join(dir, "nothing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
