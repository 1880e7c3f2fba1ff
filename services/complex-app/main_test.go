package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/records"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"complex-app": main})
}

// What somebody sees who runs the program on a terminal.
func TestTerminal(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("LOG_FORMAT", "text")
			return nil
		},
	})
}

// start runs the service on a free port until the test ends or stop is called,
// which returns the result of run.
func start(t *testing.T, s settings) (address string, stop func() error) {
	t.Helper()
	s.HTTPAddr = freeAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, s, slog.New(slog.DiscardHandler)) }()
	stop = func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(contracttest.Patience):
			return fmt.Errorf("run did not end")
		}
	}
	address = "http://" + s.HTTPAddr
	require.Eventually(t, func() bool { return status(address+"/healthz") == http.StatusOK }, contracttest.Patience, contracttest.Tick)
	return address, stop
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	return free.Addr().String()
}

func status(address string) int {
	response, err := http.Get(address)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}

func TestTheServiceEndToEnd(t *testing.T) {
	t.Parallel()
	s := settings{
		RabbitMQ: contracttest.RabbitMQ(t), MongoDB: contracttest.MongoDB(t),
		ConfirmTimeout: contracttest.Patience, ShutdownTimeout: contracttest.Patience,
	}
	address, stop := start(t, s)
	require.Eventually(t, func() bool { return status(address+"/readyz") == http.StatusOK }, contracttest.Patience, contracttest.Tick)

	for i := 1; i <= 5; i++ {
		response, err := http.PostForm(address+"/send", url.Values{"name": {fmt.Sprint("record", i)}, "content": {fmt.Sprint("content", i)}})
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusAccepted, response.StatusCode)
	}
	ch := contracttest.Channel(t, s.RabbitMQ)
	contracttest.Waiting(t, ch, s.RabbitMQ.Queue, 5)
	raw, ok, err := ch.Get(s.RabbitMQ.Queue, true)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, `{"name":"record1","content":"content1"}`, string(raw.Body))

	response, err := http.Get(address + "/data")
	require.NoError(t, err)
	defer response.Body.Close()
	var none []any
	require.NoError(t, json.NewDecoder(response.Body).Decode(&none))
	require.NotNil(t, none, "[] and not null")
	require.NoError(t, stop())
}

func TestMetricsAndHealthOnTheAdminPort(t *testing.T) {
	t.Parallel()
	s := settings{
		RabbitMQ: contracttest.RabbitMQ(t), MongoDB: contracttest.MongoDB(t),
		ConfirmTimeout: contracttest.Patience, ShutdownTimeout: contracttest.Patience,
	}
	s.AdminAddr = freeAddress(t)
	address, stop := start(t, s)
	admin := "http://" + s.AdminAddr
	require.Eventually(t, func() bool { return status(admin+"/readyz") == http.StatusOK }, contracttest.Patience, contracttest.Tick)
	require.Equal(t, http.StatusOK, status(admin+"/healthz"))
	require.Equal(t, http.StatusNotFound, status(admin+"/data"), "the API is elsewhere")
	require.Equal(t, http.StatusNotFound, status(address+"/metrics"), "the metrics are not for everybody")

	sent, err := http.Post(address+"/send?name=a", "", nil)
	require.NoError(t, err)
	require.NoError(t, sent.Body.Close())
	response, err := http.Get(admin + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	for _, line := range []string{
		`http_server_request_duration_seconds_count{error_type="",http_request_method="POST",http_response_status_code="202",http_route="/send"} 1`,
		`http_server_request_duration_seconds_count{error_type="",http_request_method="GET",http_response_status_code="200",http_route="/healthz"} 2`,
		`keda_p2_dependency_ready{dependency="MongoDB"} 1`, `keda_p2_dependency_ready{dependency="RabbitMQ"} 1`,
		`keda_p2_publish_in_flight 0`, `keda_p2_record_total_seconds_count 0`,
	} {
		require.Contains(t, string(body), line+"\n")
	}
	require.NoError(t, stop())
}

// withoutServers points to ports where nobody listens.
func withoutServers() settings {
	s := settings{ConfirmTimeout: time.Second, ShutdownTimeout: contracttest.Patience}
	s.RabbitMQ.Host, s.RabbitMQ.Port, s.RabbitMQ.VHost, s.RabbitMQ.Queue = "127.0.0.1", "1", "/", "q"
	s.MongoDB.Host, s.MongoDB.Port, s.MongoDB.DB, s.MongoDB.Collection = "127.0.0.1", "1", "db", "c"
	return s
}

func TestItStartsWithoutItsServersAndSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	address, stop := start(t, withoutServers())
	response, err := http.Get(address + "/readyz")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "waiting for RabbitMQ")

	sent, err := http.Post(address+"/send?name=a", "", nil)
	require.NoError(t, err)
	require.NoError(t, sent.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, sent.StatusCode)
	require.Equal(t, http.StatusServiceUnavailable, status(address+"/data"))
	require.NoError(t, stop())
}

// A request whose body is still on its way when SIGTERM comes is answered, and
// what it is told is true.
func TestShutdownFinishesRequestsInFlight(t *testing.T) {
	t.Parallel()
	s := settings{
		RabbitMQ: contracttest.RabbitMQ(t), MongoDB: contracttest.MongoDB(t),
		ConfirmTimeout: contracttest.Patience, ShutdownTimeout: contracttest.Patience,
	}
	address, stop := start(t, s)
	require.Eventually(t, func() bool { return status(address+"/readyz") == http.StatusOK }, contracttest.Patience, contracttest.Tick)

	body, feed := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address+"/send", body)
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	// The client sends its body only when the handler has asked for it.
	request.Header.Set("Expect", "100-continue")
	client := http.Client{Transport: &http.Transport{ExpectContinueTimeout: contracttest.Patience}}
	got := make(chan int, 1)
	go func() {
		response, err := client.Do(request)
		if err != nil {
			got <- 0
			return
		}
		_ = response.Body.Close()
		got <- response.StatusCode
	}()
	_, err = io.WriteString(feed, `{"name":"in flight"`) // returns when the client reads it
	require.NoError(t, err)

	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	require.Eventually(t, func() bool {
		_, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
		return err != nil
	}, contracttest.Patience, contracttest.Tick, "no new connection is taken")

	_, err = io.WriteString(feed, `}`)
	require.NoError(t, err)
	require.NoError(t, feed.Close())
	require.Equal(t, http.StatusAccepted, <-got)
	require.NoError(t, <-stopped)
	contracttest.Waiting(t, contracttest.Channel(t, s.RabbitMQ), s.RabbitMQ.Queue, 1)
}

// Clients that send one request after the other and read no answer are cut off, whatever
// they ask for, and do not hold up the end of the process.
func TestClientsThatNeverReadAreCutOff(t *testing.T) {
	t.Parallel()
	address, stop := start(t, withoutServers())
	began, stalled := time.Now(), make(chan time.Duration, 2)
	for _, path := range []string{"/openapi.yaml", "/page/echarts.js"} { // long answers, which soon fill the buffers
		conn, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4<<10)) // soon full
		requests := strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
		go func() {
			for err := error(nil); err == nil; { // until nothing reads them any more, and then until it is cut off
				_, err = io.WriteString(conn, requests)
			}
			stalled <- time.Since(began)
		}()
	}
	for range cap(stalled) {
		require.Less(t, <-stalled, 3*time.Minute) // ten seconds, and the time that a busy machine takes to fill the buffers
	}
	began = time.Now()
	require.NoError(t, stop())
	require.Less(t, time.Since(began), contracttest.Patience)
}

// pipe is a listener that has one connection, in the time of a synctest bubble.
type pipe struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (p pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conn:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipe) Close() error {
	close(p.closed)
	return nil
}

func (p pipe) Addr() net.Addr { return &net.TCPAddr{} }

// servePipe serves as the service does, sends one request, and returns the client's end.
func servePipe(t *testing.T, h http.Handler, request string) *bufio.Reader {
	t.Helper()
	client, conn := net.Pipe()
	p := pipe{make(chan net.Conn, 1), make(chan struct{})}
	p.conn <- conn
	server, ended := newServer(h, slog.New(slog.DiscardHandler)), make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(p)
	}()
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
		<-ended
	})
	_, err := io.WriteString(client, request)
	require.NoError(t, err)
	return bufio.NewReader(client)
}

// slowStore has ten records, and takes its time over each.
type slowStore struct{}

func (slowStore) Jobs(context.Context, []string) (map[string]string, error) { return nil, nil }

func (slowStore) List(context.Context, records.Query) iter.Seq2[records.Record, error] {
	return func(yield func(records.Record, error) bool) {
		for i := range 10 {
			<-time.After(writeTimeout / 2)
			if !yield(records.Record{ID: fmt.Sprint(i), Content: strings.Repeat("x", 64<<10)}, nil) {
				return
			}
		}
	}
}

func TestALongAnswerIsNotCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := api.New(nil, slowStore{}, nil, slog.New(slog.DiscardHandler), nil, nil)
		response, err := http.ReadResponse(servePipe(t, h, "GET /data HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), nil)
		require.NoError(t, err)
		defer response.Body.Close()
		var all []any
		require.NoError(t, json.NewDecoder(response.Body).Decode(&all))
		require.Len(t, all, 10)
	})
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := servePipe(t, http.NotFoundHandler(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		response, err := http.ReadResponse(client, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		began := time.Now()
		_, err = client.ReadByte()
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, idleTimeout, time.Since(began))
	})
}

// The description has exactly the routes that are served, the page's among them.
func TestEveryDescribedPathIsServed(t *testing.T) {
	t.Parallel()
	address, _ := start(t, withoutServers())
	response, err := http.Get(address + "/openapi.yaml")
	require.NoError(t, err)
	defer response.Body.Close()
	description, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	paths := regexp.MustCompile(`(?m)^  (/\S*):$`).FindAllStringSubmatch(string(description), -1)
	require.Greater(t, len(paths), 10)
	for _, path := range paths {
		require.NotEqual(t, http.StatusNotFound, status(address+strings.Replace(path[1], "{name}", "app.js", 1)), path[1])
	}
}

func TestAnAddressInUseIsNamed(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	s := settings{HTTPAddr: taken.Addr().String()}
	s.RabbitMQ.Host, s.RabbitMQ.Port = "127.0.0.1", "1"
	s.MongoDB.Host, s.MongoDB.Port = "127.0.0.1", "1"
	require.ErrorContains(t, run(t.Context(), s, slog.New(slog.DiscardHandler)), "HTTP_ADDR")
	s.HTTPAddr, s.AdminAddr = "127.0.0.1:0", s.HTTPAddr
	require.ErrorContains(t, run(t.Context(), s, slog.New(slog.DiscardHandler)), "ADMIN_ADDR")
}
