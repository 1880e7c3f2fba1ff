package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// hostileClients attack at a time, each one after the other.
	hostileClients = 12
	// breather is the most time between two attacks of a client. Without it the attacks
	// would take all of the machine, on which everything else runs too.
	breather = 2 * time.Second
	// stalled is longer than complex-app waits for any part of a request.
	stalled = 15 * time.Second
)

// attacks are what hostile clients do. None of them sends an event, so all that is found
// in the end is from the good clients.
var attacks = []struct {
	name string
	say  []string // is written, part by part
	// reads says whether the answers are read meanwhile.
	reads bool
	stays time.Duration // after all is said, before it hangs up
}{
	{"floods with long events that are no events", repeat(20, post("/send", "application/json", `{"content":"`+strings.Repeat("x", 60_000)+`"}`)), true, time.Second},
	{"floods with batches of empty lines", repeat(3, post("/send/batch", "application/x-ndjson", strings.Repeat("\n", 4<<20-1))), true, time.Second},
	{"floods with long queries", repeat(50, get("/data?after="+strings.Repeat("x", 60_000))), true, time.Second},
	{"looks at the dead letters", []string{get("/dead-letters")}, true, time.Second},
	{"reads all records", []string{get("/data")}, true, time.Second},
	{"asks for much and reads nothing", append(repeat(5, get("/data")), repeat(1000, get("/openapi.yaml"))...), false, stalled},
	{"watches and reads nothing", []string{get("/events")}, false, stalled},
	{"hangs up while it is answered", []string{get("/data")}, false, 0},
	{"hangs up in the middle of a body", []string{cut(post("/send", "application/json", `{"name":"half","content":"`+strings.Repeat("x", 50_000)+`"}`))}, false, 0},
	{"hangs up in the middle of a batch", []string{cut(post("/send/batch", "application/x-ndjson", strings.Repeat(`{"nam":"a"}`+"\n", 100_000)))}, false, 0},
	{"stalls in a header", []string{"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: a"}, true, stalled},
	{"stalls in a body", []string{cut(post("/send", "application/json", strings.Repeat(" ", 60_000)))}, true, stalled},
	{"sends a header without an end", repeat(20, "GET / HTTP/1.1\r\nHost: a\r\nX-Long: "+strings.Repeat("x", 1<<20)), true, stalled},
	{"sends a body without an end", append([]string{"POST /send/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"},
		repeat(200, "10000\r\n"+strings.Repeat("x", 1<<16)+"\r\n")...), true, stalled},
	{"sends nonsense", repeat(10, strings.Repeat("\x00\xff\x16\x03\x01 nonsense \r\n", 1000)), true, time.Second},
	{"sends HTTP that is wrong", []string{
		"BREW /data HTTP/1.1\r\nHost: a\r\n\r\n",
		"DELETE /data HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /data?limit=-1 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /send?nam=a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		"POST /send HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
		"POST /send HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"POST /send HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
	}, true, time.Second},
}

func get(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: a\r\n\r\n" }

func post(target, contentType, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", target, contentType, len(body), body)
}

// cut leaves out the end of a request.
func cut(request string) string { return request[:len(request)-1000] }

// repeat shares the text.
func repeat(n int, text string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = text
	}
	return all
}

// hostile are the clients that attack, beside the good ones.
type hostile struct{ attacks atomic.Int64 }

// run attacks until ctx ends.
func (h *hostile) run(ctx context.Context, address string, seed uint64) {
	var all sync.WaitGroup
	for i := range hostileClients {
		all.Go(func() {
			for r := rand.New(rand.NewPCG(seed, uint64(i))); pause(ctx, between(r, 0, breather)) == nil; {
				a := attacks[r.IntN(len(attacks))]
				if attack(ctx, address, a.say, a.reads, a.stays) == nil {
					h.attacks.Add(1)
				}
			}
		})
	}
	all.Wait()
}

// attack returns an error when there was no connection.
func attack(ctx context.Context, address string, say []string, reads bool, stays time.Duration) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	// who does not read can never say all
	ctx, cancel := context.WithTimeout(ctx, 2*stalled)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if reads {
		go func() {
			defer cancel() // complex-app has ended the connection
			_, _ = io.Copy(io.Discard, conn)
		}()
	}
	for _, part := range say {
		if _, err := io.WriteString(conn, part); err != nil {
			return nil // it was cut off
		}
	}
	_ = pause(ctx, stays)
	return nil
}
