package failures_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/process"
	"keda-p2/test/memory"
)

// Each of these loads would take more memory than a pod has, if it were let in as it comes.
// They run alone: the servers of other tests would not get a core.
func TestAPodsMemoryIsEnough(t *testing.T) {
	for name, load := range map[string]func(*testing.T, *running, queue.Config, records.Config){
		"batches of long lines": func(t *testing.T, app *running, _ queue.Config, _ records.Config) {
			sendBatches(t, app, strings.Repeat(`{"name":"`+strings.Repeat("x", 65_000)+`"}`+"\n", 64), http.StatusAccepted)
		},
		"batches of many lines": func(t *testing.T, app *running, _ queue.Config, _ records.Config) {
			sendBatches(t, app, strings.Repeat(`{"name":"`+strings.Repeat("x", 400)+`"}`+"\n", 10_000), http.StatusAccepted)
		},
		"batches of four million newlines": func(t *testing.T, app *running, _ queue.Config, _ records.Config) {
			sendBatches(t, app, strings.Repeat("\n", 4<<20-1)+"x", http.StatusRequestEntityTooLarge)
		},
		"800 events of 60 KB at once":      sendLongEvents("application/json", `{"name":"a","content":"`+strings.Repeat("x", 60_000)+`"}`),
		"800 events of 360 KB as JSON":     sendLongEvents("application/x-www-form-urlencoded", "name=a&content="+strings.Repeat("\x01", 60_000)),
		"headers of a megabyte":            sendLongHeaders,
		"eight readers, and slow ones":     readLongRecords,
		"dead letters of 16 MiB":           listLongDeadLetters,
		"many dead letters, slowly read":   listManyDeadLetters,
		"clients that ask and do not read": askWithoutReading,
	} {
		t.Run(name, func(t *testing.T) {
			limit, env, err := memory.Limit("../../deploy")
			require.NoError(t, err)
			q, db := servers(t)
			app := startApp(t, q, db, append(process.Env(env), "CONFIRM_TIMEOUT=1m")...) // what is sent again counts twice
			app.eventually(t, "/readyz", http.StatusOK)
			load(t, app, q, db)
			used, err := memory.Peak(app.Pid())
			require.NoError(t, err)
			require.Less(t, used, limit)
			t.Logf("at most %d MiB of %d", used>>20, limit>>20)
			app.sendUntilAccepted(t, "after")
		})
	}
}

// sendBatches has four clients send the batch until each has got the status.
func sendBatches(t *testing.T, app *running, body string, status int) {
	var clients errgroup.Group
	for range 4 {
		clients.Go(func() error {
			for {
				a, err := app.sendBatch(t, body)
				if err != nil || a.status == status {
					return err
				}
				if a.status != http.StatusServiceUnavailable { // it is not the turn of this one
					return fmt.Errorf("answered with %+v", a)
				}
			}
		})
	}
	require.NoError(t, clients.Wait())
}

func sendLongEvents(mediaType, body string) func(*testing.T, *running, queue.Config, records.Config) {
	return func(t *testing.T, app *running, q queue.Config, _ records.Config) {
		const events = 800
		var clients errgroup.Group
		for range events {
			clients.Go(func() error {
				for {
					response, err := http.Post("http://"+app.addr+"/send", mediaType, strings.NewReader(body))
					if err != nil {
						return err
					}
					_ = response.Body.Close()
					switch response.StatusCode {
					case http.StatusAccepted:
						return nil
					case http.StatusServiceUnavailable: // it is not the turn of this one
					default:
						return fmt.Errorf("answered with %s", response.Status)
					}
				}
			})
		}
		require.NoError(t, clients.Wait())
		requireQueues(t, q, events, 0)
	}
}

// Each connection is closed long before its header has ended.
func sendLongHeaders(t *testing.T, app *running, _ queue.Config, _ records.Config) {
	header := []byte("GET /data HTTP/1.1\r\nHost: a\r\nX-Long: " + strings.Repeat("x", 1<<20))
	var clients sync.WaitGroup
	for range 100 {
		conn := dial(t, app.addr)
		clients.Go(func() {
			_, _ = conn.Write(header)
			_, _ = io.Copy(io.Discard, conn) // until the service ends the connection
		})
	}
	clients.Wait()
}

func readLongRecords(t *testing.T, app *running, _ queue.Config, db records.Config) {
	const n = 500
	client, err := records.Connect(db, "test")
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	documents := make([]records.Record, n)
	for i := range documents {
		documents[i] = records.Record{ID: fmt.Sprint("id-", i), Name: "a", Content: strings.Repeat("x", 16_000), Status: records.Done, StoredAt: time.Now().Add(-time.Hour)}
	}
	_, err = client.Database(db.DB).Collection(db.Collection).InsertMany(t.Context(), documents)
	require.NoError(t, err)

	for range 4 { // these wait for the first byte, and then read nothing
		conn := dial(t, app.addr)
		_, err := io.WriteString(conn, "GET /data HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		_, err = io.CopyN(io.Discard, conn, 1)
		require.NoError(t, err)
	}
	var readers errgroup.Group
	for range 8 {
		readers.Go(func() error {
			for {
				response, err := http.Get("http://" + app.addr + "/data")
				if err != nil {
					return err
				}
				var all []records.Record
				switch response.StatusCode {
				case http.StatusOK:
					err = json.NewDecoder(response.Body).Decode(&all)
					_ = response.Body.Close()
					if err == nil && len(all) != n {
						err = fmt.Errorf("%d of %d records", len(all), n)
					}
					return err
				case http.StatusServiceUnavailable: // it is not the turn of this one
					_ = response.Body.Close()
				default:
					return fmt.Errorf("answered with %s", response.Status)
				}
			}
		})
	}
	require.NoError(t, readers.Wait())
}

// These are the longest that RabbitMQ 4 takes by default. A letter takes more than twice its
// size: the AMQP library lets the body grow while it comes. RabbitMQ 3 takes 128 MiB, which
// no pod of this size survives, see docs/failures.md.
func listLongDeadLetters(t *testing.T, app *running, q queue.Config, _ records.Config) {
	const letters = 3
	letter := amqp.Publishing{Body: bytes.Repeat([]byte("long"), 4<<20)}
	publishTo(t, q, q.DeadQueue(), slices.Repeat([]amqp.Publishing{letter}, letters)...)
	app.eventually(t, "/dead-letters", http.StatusOK)
	response, err := http.Get("http://" + app.addr + "/dead-letters")
	require.NoError(t, err)
	defer response.Body.Close()
	var dead []struct{ Body string }
	require.NoError(t, json.NewDecoder(response.Body).Decode(&dead))
	require.Len(t, dead, letters)
	for _, letter := range dead {
		require.Regexp(t, "^(long)+$", letter.Body)
	}
	requireQueues(t, q, 0, letters)
}

// Control characters are six bytes each in JSON.
func listManyDeadLetters(t *testing.T, app *running, q queue.Config, _ records.Config) {
	long := strings.Repeat("\x01", 8<<10)
	publishTo(t, q, q.DeadQueue(), slices.Repeat([]amqp.Publishing{
		{Body: []byte(long), Headers: amqp.Table{"dead-letter-reason": long, "dead-letter-job": long}},
		{Body: []byte(long), Headers: amqp.Table{"x-first-death-reason": long}},
	}, 500)...)
	var waiting errgroup.Group
	answers := map[string]int{}
	var mu sync.Mutex
	for range 150 { // these wait for the status, and then read nothing
		conn := dial(t, app.addr)
		require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(1<<10))
		_, err := io.WriteString(conn, "GET /dead-letters HTTP/1.1\r\nHost: a\r\n\r\n")
		require.NoError(t, err)
		waiting.Go(func() error {
			status := make([]byte, len("HTTP/1.1 200"))
			_, err := io.ReadFull(conn, status)
			mu.Lock()
			defer mu.Unlock()
			answers[string(status)]++
			return err
		})
	}
	require.NoError(t, waiting.Wait())
	require.Positive(t, answers["HTTP/1.1 200"], "%v", answers)
	require.Equal(t, 150, answers["HTTP/1.1 200"]+answers["HTTP/1.1 503"], "%v", answers)
	requireQueues(t, q, 0, 1000)
}

// Whoever sends requests and reads no answer is cut off.
func askWithoutReading(t *testing.T, app *running, _ queue.Config, _ records.Config) {
	request := strings.Repeat("GET /openapi.yaml HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
	var clients sync.WaitGroup
	for range 100 {
		conn := dial(t, app.addr)
		require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(1<<10))
		clients.Go(func() {
			for {
				if _, err := io.WriteString(conn, request); err != nil {
					return
				}
			}
		})
	}
	clients.Wait()
}
