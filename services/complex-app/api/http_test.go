package api_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/records"
)

// slowServers answer when released is closed.
type slowServers struct {
	fakeStore
	released   chan struct{}
	publishing atomic.Int64
}

func (s *slowServers) Publish(ctx context.Context, m contract.Message) error {
	s.publishing.Add(1)
	<-s.released
	return nil
}

func (s *slowServers) List(context.Context, records.Query) iter.Seq2[records.Record, error] {
	return func(func(records.Record, error) bool) { <-s.released }
}

func (s *slowServers) Connects() uint64 { return 1 }

// So many requests of a kind are served at a time. The others wait for five seconds.
func TestTooManyRequestsOfAKind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, path, contentType, body string
		places                          int
	}{
		{http.MethodPost, "/send?name=a", "", "", 128},
		{http.MethodPost, "/send/batch", "application/x-ndjson", `{"name":"a"}`, 2},
		{http.MethodGet, "/data", "", "", 3},
		{http.MethodHead, "/data", "", "", 3},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &slowServers{released: make(chan struct{})}
				handler := newSlowHandler(s)
				ask := func() *httptest.ResponseRecorder {
					r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
					r.Header.Set("Content-Type", c.contentType)
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, r)
					return w
				}
				var serving sync.WaitGroup
				for range c.places {
					serving.Go(func() {
						if w := ask(); w.Code >= http.StatusMultipleChoices {
							t.Error(w.Code, w.Body)
						}
					})
				}
				synctest.Wait() // all places are taken
				began := time.Now()
				w := ask()
				require.Equal(t, 5*time.Second, time.Since(began))
				require.Equal(t, http.StatusServiceUnavailable, w.Code)
				require.NotEmpty(t, w.Header().Get("Retry-After"))
				require.Contains(t, w.Body.String(), "too many requests of this kind")

				time.AfterFunc(time.Second, func() { close(s.released) })
				require.Less(t, ask().Code, http.StatusMultipleChoices, "it gets a place when one is free")
				serving.Wait()
			})
		})
	}
}

// A client that still sends when it is refused can read the answer.
func TestARefusedRequestIsReadBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	s := &slowServers{released: make(chan struct{})}
	server := httptest.NewServer(newSlowHandler(s))
	t.Cleanup(server.Close)
	t.Cleanup(sync.OnceFunc(func() { close(s.released) }))
	const head = "POST /send/batch%s HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n"
	event := `{"name":"a"}`
	for range 2 {
		_, err := fmt.Fprintf(dial(t, server), head+event, "", len(event))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return s.publishing.Load() == 2 }, contracttest.Patience, contracttest.Tick, "all places are taken")
	for name, c := range map[string]struct {
		query  string
		length int
		status int
	}{
		"no place":       {"", 4 << 20, http.StatusServiceUnavailable},
		"too long":       {"", 4<<20 + 1000, http.StatusServiceUnavailable},
		"what it is not": {"?a=b", 2 << 20, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, server)
			_, err := fmt.Fprintf(conn, head, c.query, c.length)
			require.NoError(t, err)
			const pieces = 70 // in seven seconds, which is longer than it waits for a place
			each := time.NewTicker(100 * time.Millisecond)
			defer each.Stop()
			piece := strings.Repeat("x", c.length/pieces)
			for range pieces {
				<-each.C
				_, err := io.WriteString(conn, piece)
				require.NoError(t, err)
			}
			_, err = io.WriteString(conn, strings.Repeat("x", c.length%pieces))
			require.NoError(t, err)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			defer response.Body.Close()
			require.Equal(t, c.status, response.StatusCode)
			body, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			require.Contains(t, string(body), "too many requests")
		})
	}
}

// A client that asks before it sends gets its answer instead of a 100.
func TestARefusedRequestIsNotAskedFor(t *testing.T) {
	t.Parallel()
	conn := dial(t, httptest.NewServer(newHandler(&fakePublisher{}, &fakeStore{})))
	_, err := io.WriteString(conn, "POST /send/batch?a=b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4000000\r\n\r\n")
	require.NoError(t, err)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusBadRequest, response.StatusCode)
}

// Behind a proxy that changes the Host header, the page's origin is another one.
func TestTrustedOrigins(t *testing.T) {
	t.Parallel()
	handler := api.New(&fakePublisher{}, &fakeStore{}, &fakeDeadLetters{}, slog.New(slog.DiscardHandler), []string{"https://demo.example"}, nil)
	for origin, status := range map[string]int{
		"https://demo.example": http.StatusAccepted, "http://demo.example": http.StatusForbidden,
		"https://evil.example": http.StatusForbidden, "null": http.StatusForbidden,
	} {
		r := httptest.NewRequest(http.MethodPost, "http://complex-app/send?name=a", nil)
		r.Header.Set("Origin", origin)
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Equal(t, status, w.Code, origin)
	}
}

func TestAllowedHosts(t *testing.T) {
	t.Parallel()
	handler := api.New(&fakePublisher{}, &fakeStore{}, &fakeDeadLetters{}, slog.New(slog.DiscardHandler), nil, []string{"Demo.example", "complex-app"})
	for host, status := range map[string]int{
		"demo.example": http.StatusOK, "DEMO.example:8080": http.StatusOK, "complex-app": http.StatusOK,
		"localhost:8080": http.StatusOK, "10.0.0.7:8080": http.StatusOK, "[::1]:8080": http.StatusOK, // as kubectl port-forward and probes do
		"evil.example": http.StatusMisdirectedRequest, "demo.example.evil.example": http.StatusMisdirectedRequest,
		"": http.StatusMisdirectedRequest, "localhost.evil.example": http.StatusMisdirectedRequest, "10.0.0.7.evil.example": http.StatusMisdirectedRequest,
	} {
		for _, path := range []string{"/healthz", "/data"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = host
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			require.Equal(t, status, w.Code, host)
		}
	}
}

func dial(t *testing.T, server *httptest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
