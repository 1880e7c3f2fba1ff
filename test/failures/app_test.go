package failures_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestServiceIsToldToStopWithRequestsInFlight(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		timeout string
		confirm bool // comes while it stops
		status  int
	}{
		{"the confirms come", "1m", true, http.StatusAccepted},
		{"the confirms never come", "2s", false, http.StatusServiceUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const requests = 20
			q, _ := servers(t)
			linked, l := brokerLink(t, q)
			app := startApp(t, linked, noDatabase(), "CONFIRM_TIMEOUT="+c.timeout)
			app.eventually(t, "/healthz", http.StatusOK)
			app.sendUntilAccepted(t, "before")
			l.hold(t, down, "")

			answers := make(chan answer, requests)
			for i := range requests {
				go func() {
					a, err := app.send(t.Context(), fmt.Sprint("id-", i), "name", "content")
					if err != nil {
						a.detail = err.Error()
					}
					answers <- a
				}()
			}
			requireQueues(t, q, 1+requests, 0)
			app.signal(t, syscall.SIGTERM)
			eventually(t, func() bool { return app.logged("shutting down") }, "it stops")
			eventually(t, func() bool {
				conn, err := net.Dial("tcp", app.addr)
				if err == nil {
					_ = conn.Close()
				}
				return err != nil
			}, "it takes no new connection")
			if c.confirm {
				l.release()
			}
			for range requests {
				a := <-answers
				require.Equal(t, c.status, a.status, "%+v", a)
				require.NotEmpty(t, a.id)
			}
			require.Zero(t, app.exit(t))
		})
	}
}

func TestServiceIsKilledWithRequestsInFlight(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	app := startApp(t, q, noDatabase())
	app.sendUntilAccepted(t, "before")
	l := startLoad(t, app, 32)
	l.more(t, 200)
	app.Kill()
	l.stop()
	found := drain(t, q)
	for id := range l.accepted {
		require.Contains(t, found, id, "it was answered with 202")
	}
	t.Logf("%d events answered with 202, %d ids in the queue", len(l.accepted), len(found))
}

func TestClientsHangUpBeforeTheConfirm(t *testing.T) {
	t.Parallel()
	const clients = 100
	q, db := servers(t)
	linked, l := brokerLink(t, q)
	app := startApp(t, linked, db, "CONFIRM_TIMEOUT=1m")
	app.sendUntilAccepted(t, "before")
	http.DefaultClient.CloseIdleConnections()
	files := app.openFiles(t)
	held := l.hold(t, down, "")
	ctx, hangUp := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	for i := range clients {
		wait.Go(func() {
			if a, err := app.send(ctx, fmt.Sprint("id-", i), "name", "content"); err == nil {
				t.Errorf("answered with %+v before the confirm", a)
			}
		})
	}
	requireQueues(t, q, 1+clients, 0)
	hangUp()
	wait.Wait()
	l.drop(t, held)
	app.sendUntilAccepted(t, "after")
	http.DefaultClient.CloseIdleConnections()
	eventually(t, func() bool { return app.openFiles(t) <= files+5 }, "no socket is left")
	require.Len(t, drain(t, q), clients+2)
	requireNoPublish(t, app.goroutines(t))
}

// A request that comes a byte at a time is cut off, whatever it asks for.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	app := startApp(t, q, db)
	app.eventually(t, "/readyz", http.StatusOK)
	for name, c := range map[string]struct {
		head  string
		limit time.Duration
	}{
		"a header":                 {"POST /send?name=a HTTP/1.1\r\nHost: a\r\nX-Slow: ", 5*time.Second + slack},
		"an event":                 {"POST /send HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
		"an event in chunks":       {"POST /send HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n60000\r\n", 10*time.Second + slack},
		"a batch":                  {"POST /send/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nContent-Length: 60000\r\n\r\n", 30*time.Second + slack},
		"a body that is not asked": {"GET /data HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
		"a body of a redrive":      {"POST /dead-letters/redrive HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
		"a body for nobody":        {"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
		"a body for the page":      {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
		"a body for its events":    {"GET /events HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
		"a body with a bad key":    {"POST /send HTTP/1.1\r\nHost: a\r\nIdempotency-Key: a b\r\nContent-Length: 60000\r\n\r\n", 10*time.Second + slack},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, app.addr)
			_, err := io.WriteString(conn, c.head)
			require.NoError(t, err)
			began := time.Now()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = io.Copy(io.Discard, conn) // until the service ends the connection
			}()
			each := time.NewTicker(100 * time.Millisecond)
			defer each.Stop()
			for open := true; open; {
				select {
				case <-each.C:
					_, _ = io.WriteString(conn, " ")
					require.Less(t, time.Since(began), c.limit, "it is still read")
				case <-ended:
					open = false
				}
			}
			t.Logf("ended after %s", time.Since(began))
		})
	}
}

func Test10000ConnectionsThatSendNothing(t *testing.T) {
	t.Parallel()
	const connections = 10_000
	q, db := servers(t)
	app := startApp(t, q, db)
	app.sendUntilAccepted(t, "before")
	files := app.openFiles(t)
	open := make([]net.Conn, connections)
	began := time.Now()
	for i := range open {
		open[i] = dial(t, app.addr)
	}
	t.Logf("opened in %s", time.Since(began))
	a := app.mustSend(t, "among-them", http.StatusAccepted)
	t.Logf("/send took %s meanwhile, with %d open files", a.took, app.openFiles(t))
	require.Less(t, a.took, 2*slack)
	eventually(t, func() bool { return app.openFiles(t) <= files+5 }, "they are closed")
	t.Logf("closed after %s", time.Since(began))
	for _, conn := range open[:10] {
		_, err := bufio.NewReader(conn).ReadByte()
		require.Error(t, err)
	}
	app.sendUntilAccepted(t, "after")
}
