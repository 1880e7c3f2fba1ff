package failures_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
)

const batchLines = 4000

var wholeBatch = strings.Repeat("{\"name\":\"a\"}\n", batchLines)

type batchAnswer struct {
	status            int
	Accepted, Refused int
	Detail            string
}

// sendBatch posts a batch, always with the same key. The error is the connection's.
func (p *running) sendBatch(t *testing.T, body string) (a batchAnswer, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.addr+"/send/batch", strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/x-ndjson")
	request.Header.Set("Idempotency-Key", "key")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	require.NoError(t, json.NewDecoder(response.Body).Decode(&a))
	a.status = response.StatusCode
	return a, nil
}

// during sends the batch and calls f when a part of it is in the queue.
func (p *running) during(t *testing.T, q queue.Config, f func()) batchAnswer {
	t.Helper()
	answers := make(chan batchAnswer, 1)
	go func() {
		a, err := p.sendBatch(t, wholeBatch)
		if err != nil {
			t.Error(err)
		}
		answers <- a
	}()
	ch := contracttest.Channel(t, q)
	eventually(t, func() bool {
		state, err := ch.QueueDeclarePassive(q.Queue, true, false, false, false, nil)
		return err == nil && state.Messages > 600 // more than are in flight, so some are confirmed
	}, "some lines are in the queue")
	f()
	return <-answers
}

// The client learns that not all of it was taken, sends the same batch again, and no
// event counts twice.
func TestRabbitMQGoesAwayDuringABatch(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	linked, l := brokerLink(t, n.queue)
	app := startApp(t, linked, noDatabase(), "CONFIRM_TIMEOUT=1m")
	app.eventually(t, "/readyz", http.StatusOK)
	a := app.during(t, n.queue, func() {
		l.hold(t, down, "") // the batch might be over before the node is down
		n.Kill()
	})
	l.release()
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Contains(t, a.Detail, "send the whole batch again with the same Idempotency-Key")
	require.Equal(t, batchLines, a.Accepted+a.Refused)
	require.NoError(t, n.Start(t.Context()))
	first := a.Accepted
	require.Positive(t, first)

	eventually(t, func() bool {
		var err error
		a, err = app.sendBatch(t, wholeBatch)
		require.NoError(t, err)
		return a.status == http.StatusAccepted
	}, "the whole batch is accepted")
	require.Equal(t, batchLines, a.Accepted)
	found := drain(t, n.queue)
	require.Len(t, found, batchLines, "one id per line")
	messages := 0
	for id, count := range found {
		require.True(t, strings.HasPrefix(id, "key-"), id)
		messages += count
	}
	require.GreaterOrEqual(t, messages, batchLines+first, "what was accepted is in the queue")
	t.Logf("%d lines accepted at first; %d messages, %d ids", first, messages, len(found))
}

// A batch that has been received is finished before the process ends.
func TestSIGTERMDuringABatch(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	app := startApp(t, q, noDatabase())
	app.eventually(t, "/readyz", http.StatusOK)
	a := app.during(t, q, func() { app.signal(t, syscall.SIGTERM) })
	require.Equal(t, http.StatusAccepted, a.status)
	require.Equal(t, batchLines, a.Accepted)
	require.Zero(t, app.exit(t))
	require.Len(t, drain(t, q), batchLines)
}

// A body that is too long is refused without being read to its end.
func TestABatchWithoutAnEnd(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	app := startApp(t, q, noDatabase())
	conn := dial(t, app.addr)
	_, err := fmt.Fprint(conn, "POST /send/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.NoError(t, err)
	chunk := strings.Repeat(`{"name":"a"}`+"\n", 1000)
	for err == nil { // until the connection is reset
		_, err = fmt.Fprintf(conn, "%x\r\n%s\r\n", len(chunk), chunk)
	}
	app.eventually(t, "/readyz", http.StatusOK)
	requireQueues(t, q, 0, 0)
}
