package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
)

const ndjson = "application/x-ndjson"

// batchLine is a line of an answer: a result, or the end.
type batchLine struct {
	Line, Status      int
	ID, Detail        string
	Accepted, Refused *int
}

// results returns the lines of an answer, and its end.
func results(t *testing.T, body string) (lines []batchLine, end batchLine) {
	t.Helper()
	for text := range strings.Lines(body) {
		var l batchLine
		require.NoError(t, json.Unmarshal([]byte(text), &l))
		lines = append(lines, l)
	}
	end, lines = lines[len(lines)-1], lines[:len(lines)-1]
	require.NotNil(t, end.Accepted, "the answer is complete")
	return lines, end
}

func TestBatch(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", contract.MaxEventBytes)
	p := &fakePublisher{}
	a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send/batch", ndjson+"; charset=utf-8", strings.Join([]string{
		`{"name":"имя","content":"<b>"}`,
		`{"name":"a","id":"my-key"}` + "\r",
		``,
		`name=a`,
		`{"content":"b"}`,
		`{"name":"a","id":"x y"}`,
		`{"name":"a","id":""}`,
		`{"name":"a","key":"b"}`,
		`{"name":"` + long + `"}`,
		`{"name":"a"} {"name":"b"}`,
		`{"name":1}`,
		`{"name":"last"}`,
	}, "\n"))
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, ndjson, a.header.Get("Content-Type"))
	lines, end := results(t, a.body)
	require.Equal(t, 3, *end.Accepted)
	require.Equal(t, 8, *end.Refused)
	require.Empty(t, end.Detail)
	for i, want := range []struct {
		line   int
		detail string // empty for 202
	}{
		{1, ""}, {2, ""}, {4, "not JSON"}, {5, "name is missing"}, {6, "id must be one value of 1 to 255"}, {7, "id must be"},
		{8, `unknown field "key"; only id, name and content are allowed`}, {9, "longer than 65536 bytes"},
		{10, "more after"}, {11, "name is a JSON number"}, {12, ""},
	} {
		got := lines[i]
		require.Equal(t, want.line, got.Line)
		if want.detail != "" {
			require.Equal(t, http.StatusBadRequest, got.Status)
			require.Contains(t, got.Detail, want.detail)
			require.Empty(t, got.ID)
			continue
		}
		require.Equal(t, http.StatusAccepted, got.Status)
		require.Empty(t, got.Detail)
		require.True(t, slices.ContainsFunc(p.published, func(m contract.Message) bool { return m.ID == got.ID }))
	}
	require.Equal(t, "my-key", lines[1].ID)
	var names []string
	for _, m := range p.published {
		names = append(names, m.Name)
	}
	require.Equal(t, []string{"имя", "a", "last"}, names)
}

func TestAnEmptyBatch(t *testing.T) {
	t.Parallel()
	a := request(t, http.MethodPost, serve(t, &fakePublisher{}, &fakeStore{})+"/send/batch", ndjson, "\n")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, `{"accepted":0,"refused":0}`+"\n", a.body)
}

func TestABatchThatIsNone(t *testing.T) {
	t.Parallel()
	url := serve(t, &fakePublisher{}, &fakeStore{}) + "/send/batch"
	requireProblem(t, request(t, http.MethodPost, url, asJSON, `[{"name":"a"}]`), http.StatusUnsupportedMediaType, "application/x-ndjson: one JSON object a line")
	url = serve(t, &fakePublisher{notReady: errAway}, &fakeStore{}) + "/send/batch"
	requireProblem(t, request(t, http.MethodPost, url, ndjson, `{"name":"a"}`), http.StatusServiceUnavailable, "RabbitMQ is not available")
}

func TestABatchThatRabbitMQDoesNotTake(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err    error
		detail string
	}{
		{queue.ErrUnavailable, "was not accepted; send it again"},
		{queue.ErrUnconfirmed, "may have been accepted"},
	} {
		p := &fakePublisher{err: fmt.Errorf("%w: dial tcp 10.0.0.7", c.err)}
		a := request(t, http.MethodPost, serve(t, p, &fakeStore{})+"/send/batch", ndjson, `{"name":"a"}`+"\n"+`{"name":"b","id":"b"}`)
		lines, end := results(t, a.body)
		require.Equal(t, 2, *end.Refused)
		require.Equal(t, "b", lines[1].ID)
		for _, l := range lines {
			require.Equal(t, http.StatusServiceUnavailable, l.Status)
			require.NotEmpty(t, l.ID, "to send it again")
			require.Contains(t, l.Detail, c.detail)
			require.NotContains(t, l.Detail, "10.0.0.7")
		}
	}
}

// startBatch begins a request whose lines come one by one.
func startBatch(t *testing.T, url string) (send func(string), next func() (batchLine, error), hangUp func()) {
	t.Helper()
	body, writer := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/send/batch", body)
	require.NoError(t, err)
	r.Header.Set("Content-Type", ndjson)
	answered := make(chan *http.Response, 1)
	go func() {
		response, err := http.DefaultClient.Do(r)
		if err == nil {
			answered <- response
		}
		close(answered)
	}()
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = writer.Close() })
	var lines *bufio.Reader
	next = func() (l batchLine, err error) {
		if lines == nil {
			response, ok := <-answered
			if !ok {
				return l, io.ErrUnexpectedEOF
			}
			t.Cleanup(func() { _ = response.Body.Close() })
			lines = bufio.NewReader(response.Body)
		}
		text, err := lines.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(text, &l)
		}
		return l, err
	}
	return func(text string) {
		_, err := io.WriteString(writer, text)
		require.NoError(t, err)
	}, next, cancel
}

// The first results are there before the last lines have been sent.
func TestABatchIsAnsweredAsItGoes(t *testing.T) {
	t.Parallel()
	send, next, _ := startBatch(t, serve(t, &fakePublisher{}, &fakeStore{}))
	for i := range 300 { // more than are in flight at once
		send(`{"name":"a"}` + "\n")
		l, err := next()
		require.NoError(t, err)
		require.Equal(t, i+1, l.Line)
		require.Equal(t, http.StatusAccepted, l.Status)
	}
}

// Else the time to the confirm, which is measured, would be that of the client.
func TestASlowReaderHoldsUpNoConfirm(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	server := httptest.NewServer(newHandler(p, &fakeStore{}))
	t.Cleanup(server.Close)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })                      // before the server, which waits for it
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4096)) // it is full sooner
	_, err = fmt.Fprint(conn, "POST /send/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.NoError(t, err)
	chunk := strings.Repeat(`{"name":"a"}`+"\n", 1000)
	for err == nil { // until both sides' buffers are full
		require.NoError(t, conn.SetWriteDeadline(time.Now().Add(time.Second)))
		_, err = fmt.Fprintf(conn, "%x\r\n%s\r\n", len(chunk), chunk)
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.confirmed == len(p.published)
	}, contracttest.Patience, contracttest.Tick)
}

func TestABatchEndsWithTheService(t *testing.T) {
	t.Parallel()
	stopping, stop := context.WithCancel(t.Context())
	p, s, d := &fakePublisher{}, &fakeStore{}, &fakeDeadLetters{}
	server := httptest.NewServer(api.New(stopping, p, s, d, newView(p, s, d), nil, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	send, next, _ := startBatch(t, server.URL)
	send(`{"name":"a"}` + "\n")
	_, err := next()
	require.NoError(t, err)
	stop()
	send(`{"name":"b"}` + "\n")
	var last batchLine
	for last.Accepted == nil {
		last, err = next()
		require.NoError(t, err)
	}
	require.Contains(t, last.Detail, "shutting down; what begins with line ")
	require.Len(t, p.published, *last.Accepted, "what was accepted is told")
}

// A client that hangs up leaves nothing behind, and half of a line is no event.
func TestAClientLeavesItsBatch(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	server := httptest.NewServer(newHandler(p, &fakeStore{}))
	send, next, hangUp := startBatch(t, server.URL)
	send(`{"name":"a"}` + "\n" + `{"name":"b"}`)
	_, err := next()
	require.NoError(t, err)
	hangUp()
	_, err = next()
	require.Error(t, err)
	server.Close() // waits for the handler
	require.Len(t, p.published, 1)
}
