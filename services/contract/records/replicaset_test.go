package records_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/records"
)

// A member that is down must not hold up the build of an index, which waits for all voting
// members by default. A server alone refuses to be told otherwise.
func TestIndexesWaitForAMajority(t *testing.T) {
	t.Parallel()
	for setName, want := range map[string]any{"": nil, "rs0": "majority"} {
		server := newFakeMongoDB(t, setName)
		s, err := records.Open(server.config, "test")
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		require.NoError(t, s.CreateIndexes(t.Context()))
		server.mu.Lock()
		require.Len(t, server.indexes, 3)
		for _, command := range server.indexes {
			require.Equal(t, want, command["commitQuorum"])
		}
		server.mu.Unlock()
	}
}

// Without the server's time every record would count as too young to be shown.
func TestAServerMustTellItsTime(t *testing.T) {
	t.Parallel()
	s, err := records.Open(newFakeMongoDB(t, "").config, "test")
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	for _, err = range s.List(t.Context(), records.Query{Settled: true}) {
	}
	require.EqualError(t, err, "ask the server for its time: its answer to hello has no localTime")
}

// fakeMongoDB accepts everything, and does not tell its time. No replica set can run in these tests.
type fakeMongoDB struct {
	config  records.Config
	setName string

	mu      sync.Mutex
	indexes []bson.M // the commands
}

func newFakeMongoDB(t *testing.T, setName string) *fakeMongoDB {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	host, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	f := &fakeMongoDB{setName: setName, config: records.Config{Server: config.Server{Host: host}, Port: config.Port(port), DB: "db", Collection: "c"}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

// serve answers in the protocol of the question: OP_QUERY (2004) with OP_REPLY (1), or
// OP_MSG (2013).
func (f *fakeMongoDB) serve(conn net.Conn) {
	defer conn.Close()
	for {
		head := make([]byte, 16) // length, id, id of the question, kind
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		body := make([]byte, binary.LittleEndian.Uint32(head)-16)
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		answer := binary.LittleEndian.AppendUint32(nil, 0)
		answer = append(append(answer, 0, 0, 0, 0), head[4:8]...)
		if binary.LittleEndian.Uint32(head[12:]) == 2004 {
			answer = append(append(answer, 1, 0, 0, 0), make([]byte, 20)...)
			answer[16+16] = 1 // one document
		} else {
			var command bson.M
			_ = bson.Unmarshal(body[5:], &command) // after the flags and the kind of the section
			if _, ok := command["createIndexes"]; ok {
				f.mu.Lock()
				f.indexes = append(f.indexes, command)
				f.mu.Unlock()
			}
			answer = append(append(answer, 0xdd, 0x07, 0, 0), make([]byte, 5)...)
		}
		hello := bson.D{{Key: "ok", Value: 1}, {Key: "isWritablePrimary", Value: true}, {Key: "ismaster", Value: true}, {Key: "helloOk", Value: true},
			{Key: "maxWireVersion", Value: 25}, {Key: "minWireVersion", Value: 0}}
		if f.setName != "" {
			address := conn.LocalAddr().String()
			hello = append(hello, bson.E{Key: "setName", Value: f.setName}, bson.E{Key: "me", Value: address}, bson.E{Key: "hosts", Value: bson.A{address}})
		}
		document, _ := bson.Marshal(hello)
		answer = append(answer, document...)
		binary.LittleEndian.PutUint32(answer, uint32(len(answer)))
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}
