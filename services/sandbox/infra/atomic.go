package infra

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxMessage is the longest message of MongoDB's protocol, in bytes.
	maxMessage = 48_000_000
	// answerTimeout lets no command keep the others waiting for ever.
	answerTimeout = time.Minute
)

// oneAtATime passes MongoDB's protocol on to a FerretDB, one command after the
// other. MongoDB changes a document atomically. FerretDB 1.24 reads it first and
// writes it later: the last command of a client that was killed, still being
// worked on, would undo what another client has changed meanwhile.
type oneAtATime struct {
	net.Listener
	server string // the FerretDB's address

	turn sync.Mutex
	wait sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil when closed
}

func listenOneAtATime(server string) (*oneAtATime, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o := &oneAtATime{Listener: l, server: server, conns: map[net.Conn]bool{}}
	o.wait.Go(func() {
		for {
			client, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && o.keep(client) {
				o.wait.Go(func() { o.serve(client) })
			}
		}
	})
	return o, nil
}

// Close cuts every connection, wherever it is in its work.
func (o *oneAtATime) Close() {
	_ = o.Listener.Close()
	o.mu.Lock()
	for conn := range o.conns {
		_ = conn.Close()
	}
	o.conns = nil
	o.mu.Unlock()
	o.wait.Wait()
}

// keep notes a connection for Close, or closes it when that is over.
func (o *oneAtATime) keep(conn net.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		_ = conn.Close()
		return false
	}
	o.conns[conn] = true
	return true
}

func (o *oneAtATime) forget(conn net.Conn) {
	_ = conn.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, conn)
}

func (o *oneAtATime) serve(client net.Conn) {
	defer o.forget(client)
	server, err := net.Dial("tcp", o.server)
	if err != nil || !o.keep(server) {
		return
	}
	defer o.forget(server)
	for {
		command, err := readMessage(client)
		if err != nil {
			return
		}
		// the turn ends with the answer, even when nobody waits for that any more
		o.turn.Lock()
		_ = server.SetDeadline(time.Now().Add(answerTimeout))
		_, err = server.Write(command)
		var answer []byte
		if err == nil {
			answer, err = readMessage(server)
		}
		o.turn.Unlock()
		if err != nil {
			return
		}
		if _, err := client.Write(answer); err != nil {
			return
		}
	}
}

// readMessage reads one message, which begins with its length.
func readMessage(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n < 16 || n > maxMessage {
		return nil, errors.New("not a message of MongoDB's protocol")
	}
	message := make([]byte, n)
	copy(message, length[:])
	_, err := io.ReadFull(r, message[4:])
	return message, err
}
