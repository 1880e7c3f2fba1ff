package failures_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/freeport"
)

// The directions of a link, seen from the client.
const (
	up   = "upstream"
	down = "downstream"
)

// Pieces by which a hold finds its place in the protocols.
const (
	storing       = "storedAt"   // the update that adds a record
	stored        = "upserted"   // MongoDB's answer to it
	marking       = "finishedAt" // the update that marks it as done
	acknowledging = "\x00\x3c\x00\x50"
	claiming      = "\x00\x3c\x00\x46"
	delivering    = "\x00\x3c\x00\x47" // RabbitMQ's answer to a claim
	showing       = "\x00\x3c\x00\x3c" // a dead letter
	confirming    = "\x00\x55\x00\x0b" // RabbitMQ's answer before the declaration of the queues
	heartbeat     = "\x08\x00\x00\x00\x00\x00\x00\xce"
)

const holdType = "hold"

// hold is a toxic that keeps what is sent, from the first piece on that contains
// Match, until it is removed. Then it lets everything go on, in order. Unlike
// Toxiproxy's own timeout it loses nothing, and unlike its latency it can wait
// for a certain request.
type hold struct {
	Match string
	// Once leaves all connections alone but the first that it has held.
	Once bool
	// Deaf keeps the end of a connection as well, as a broken network does.
	// Otherwise the receiver learns at once that the sender has died, and what
	// was kept is lost.
	Deaf bool
	// Alive lets RabbitMQ's heartbeats through.
	Alive bool
	// Full does not even read, so that the sender's buffers fill up.
	Full bool

	held atomic.Bool // something, on any connection
	name string
}

// kept is what a hold has of one connection.
type kept struct {
	chunks []*stream.StreamChunk
	ended  bool
}

// NewState implements toxics.StatefulToxic.
func (h *hold) NewState() any { return new(kept) }

// Pipe implements toxics.Toxic. It is interrupted, and called again, when another
// toxic is added behind it.
func (h *hold) Pipe(stub *toxics.ToxicStub) {
	k := stub.State.(*kept)
	for {
		if k.ended || h.Full {
			<-stub.Interrupt
			return
		}
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			switch {
			case chunk == nil: // the sender has ended the connection
				if k.ended = h.Deaf; !k.ended {
					stub.Close()
					return
				}
			case h.Alive && string(chunk.Data) == heartbeat:
				pass(stub, chunk)
			case k.chunks != nil, bytes.Contains(chunk.Data, []byte(h.Match)) && (h.held.CompareAndSwap(false, true) || !h.Once):
				k.chunks = append(k.chunks, chunk)
			default:
				pass(stub, chunk)
			}
		}
	}
}

// Cleanup implements toxics.CleanupToxic: it is called when the hold is removed.
func (h *hold) Cleanup(stub *toxics.ToxicStub) {
	k := stub.State.(*kept)
	pass(stub, k.chunks...)
	if k.ended {
		stub.Close()
	}
}

// pass lets chunks go on to a receiver who may be gone by now.
func pass(stub *toxics.ToxicStub, chunks ...*stream.StreamChunk) {
	for _, chunk := range chunks {
		if stub.WriteOutput(chunk, time.Second) != nil {
			return
		}
	}
}

// link is a proxy in front of a server.
type link struct {
	host, port string
	proxy      *toxiproxy.Proxy
}

func newLink(t *testing.T, serverHost, serverPort string) *link {
	t.Helper()
	// a port that nobody gets while the link is cut
	port, release, err := freeport.Reserve()
	require.NoError(t, err)
	l := &link{host: "127.0.0.1", port: strconv.Itoa(port)}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l.proxy = toxiproxy.NewProxy(server, t.Name(), net.JoinHostPort(l.host, l.port), net.JoinHostPort(serverHost, serverPort))
	l.mend(t)
	t.Cleanup(func() { l.release(); l.cut(); release() })
	return l
}

// brokerLink returns the same queue behind a link.
func brokerLink(t *testing.T, q queue.Config) (queue.Config, *link) {
	t.Helper()
	l := newLink(t, q.Host, string(q.Port))
	q.Host, q.Port = l.host, config.Port(l.port)
	return q, l
}

// databaseLink returns the same collection behind a link.
func databaseLink(t *testing.T, db records.Config) (records.Config, *link) {
	t.Helper()
	l := newLink(t, db.Host, string(db.Port))
	db.Host, db.Port = l.host, config.Port(l.port)
	return db, l
}

// cut ends all connections and refuses new ones.
func (l *link) cut() { l.proxy.Stop() }

func (l *link) mend(t *testing.T) {
	t.Helper()
	require.NoError(t, l.proxy.Start())
}

// add puts a toxic on all connections, those to come as well.
func (l *link) add(t *testing.T, direction, kind string, attributes any) *toxics.ToxicWrapper {
	t.Helper()
	description, err := json.Marshal(map[string]any{"name": rand.Text(), "type": kind, "stream": direction, "attributes": attributes})
	require.NoError(t, err)
	added, err := l.proxy.Toxics.AddToxicJson(bytes.NewReader(description))
	require.NoError(t, err)
	return added
}

// hold keeps what is sent in one direction, from match on, until release.
func (l *link) hold(t *testing.T, direction, match string) *hold {
	t.Helper()
	added := l.add(t, direction, holdType, map[string]any{"Match": match})
	h := added.Toxic.(*hold)
	h.name = added.Name
	return h
}

// stall lets nothing through in either direction until release.
func (l *link) stall(t *testing.T) {
	t.Helper()
	for _, direction := range []string{up, down} {
		l.add(t, direction, holdType, map[string]any{"Deaf": true})
	}
}

// drop ends one hold.
func (l *link) drop(t *testing.T, h *hold) {
	t.Helper()
	require.NoError(t, l.proxy.Toxics.RemoveToxic(t.Context(), h.name))
}

// release lets everything go on.
func (l *link) release() { l.proxy.Toxics.ResetToxics(context.Background()) }
