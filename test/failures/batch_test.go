package failures_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// batch is a POST /send/batch whose lines come until it is told to stop.
type batch struct {
	stop    func()
	results *bufio.Scanner
	line    batchLine // the last one read
	ids     map[int]string
}

type batchLine struct {
	Line, Status, Accepted, Refused int
	ID, Detail                      string
}

// startBatch sends lines, each with the id batch-<line>, until stop is called.
func (p *running) startBatch(t *testing.T) *batch {
	t.Helper()
	body, writer := io.Pipe()
	stopping, stop := context.WithCancel(t.Context())
	go func() {
		for i := 1; stopping.Err() == nil; i++ {
			if _, err := fmt.Fprintf(writer, `{"id":"batch-%d","name":"name"}`+"\n", i); err != nil {
				return
			}
		}
		_ = writer.Close()
	}()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+"/send/batch", body)
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/x-ndjson")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	t.Cleanup(func() { stop(); _ = response.Body.Close() })
	require.Equal(t, http.StatusOK, response.StatusCode)
	return &batch{stop: stop, results: bufio.NewScanner(response.Body), ids: map[int]string{}}
}

// next reads a line of the answer.
func (b *batch) next() bool {
	b.line = batchLine{}
	return b.results.Scan() && json.Unmarshal(b.results.Bytes(), &b.line) == nil
}

// until reads results until so many more have a status, and notes those with 202.
func (b *batch) until(t *testing.T, status, n int) {
	t.Helper()
	for n > 0 {
		require.True(t, b.next(), "the answer goes on: %v", b.results.Err())
		b.note(t)
		if b.line.Status == status {
			n--
		}
	}
}

func (b *batch) note(t *testing.T) {
	t.Helper()
	require.Equal(t, len(b.ids)+1, b.line.Line, "one result a line, in the same order")
	b.ids[b.line.Line] = ""
	if b.line.Status == http.StatusAccepted {
		b.ids[b.line.Line] = b.line.ID
	} else {
		require.Equal(t, http.StatusServiceUnavailable, b.line.Status, "%+v", b.line)
	}
	require.Equal(t, fmt.Sprint("batch-", b.line.Line), b.line.ID)
}

// rest reads to the end, which says what was accepted.
func (b *batch) rest(t *testing.T) {
	t.Helper()
	for b.next() && b.line.Line > 0 {
		b.note(t)
	}
	require.NoError(t, b.results.Err())
	require.Equal(t, len(b.ids), b.line.Accepted+b.line.Refused, "every line has its result")
}

// requireQueued checks that what was accepted is in the queue.
func (b *batch) requireQueued(t *testing.T, found map[string]int) {
	t.Helper()
	accepted := 0
	for _, id := range b.ids {
		if id != "" {
			accepted++
			require.Positive(t, found[id])
		}
	}
	require.Equal(t, accepted, b.line.Accepted)
	t.Logf("%d of %d lines accepted; %d ids in the queue", accepted, len(b.ids), len(found))
}

// The batch ends where RabbitMQ goes away, and says where to go on.
func TestRabbitMQGoesAwayDuringABatch(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	app := startApp(t, n.queue, noDatabase(), "CONFIRM_TIMEOUT=5s")
	app.sendUntilAccepted(t, "first")
	b := app.startBatch(t)
	b.until(t, http.StatusAccepted, 300)
	n.Kill()
	b.rest(t)
	require.Contains(t, b.line.Detail, fmt.Sprintf("RabbitMQ is not available; what begins with line %d was not looked at", len(b.ids)+1))
	require.NoError(t, n.Start(t.Context()))
	app.sendUntilAccepted(t, "another")
	b.requireQueued(t, drain(t, n.queue))
}

func TestSIGTERMDuringABatch(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	app := startApp(t, q, noDatabase())
	app.sendUntilAccepted(t, "first")
	b := app.startBatch(t)
	b.until(t, http.StatusAccepted, 300)
	app.signal(t, syscall.SIGTERM)
	b.rest(t)
	require.Contains(t, b.line.Detail, "the service is shutting down; what begins with line")
	require.Zero(t, app.exit(t))
	b.requireQueued(t, drain(t, q))
}

// A client that sends and never reads is cut off, and holds up no other.
func TestAClientDoesNotReadItsBatch(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	app := startApp(t, q, noDatabase())
	app.sendUntilAccepted(t, "first")
	conn, err := net.Dial("tcp", app.addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4096)) // it is full sooner
	_, err = fmt.Fprint(conn, "POST /send/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.NoError(t, err)
	chunk := strings.Repeat(`{"name":"a"}`+"\n", 1000)
	for err == nil { // until both sides' buffers are full, and then the connection is reset
		_, err = fmt.Fprintf(conn, "%x\r\n%s\r\n", len(chunk), chunk)
	}
	app.sendUntilAccepted(t, "another")
	drain(t, q)
}
