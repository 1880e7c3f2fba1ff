package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// replay is a server for MongoDB's protocol that has one collection, in memory and
// in the order of its records, and answers find and getMore as MongoDB does whose
// index has that order: with the next documents, looking at no others. It is there
// because FerretDB 1.24 reads and sorts a whole collection for each find: a million
// records take it minutes, and gigabytes. It costs less than any real server, which
// makes it the hardest one to be compared on.
type replay struct {
	net.Listener
	docs    []bson.Raw
	cursors sync.Map // number → *replayCursor
	last    atomic.Int64
}

type replayCursor struct{ next, end int }

// The protocol's codes, and the size of a batch without a batchSize.
const (
	opReply    = 1
	opQuery    = 2004
	opMsg      = 2013
	firstBatch = 101
	maxBatch   = 16 << 20 // bytes
	maxMessage = 48_000_000
)

// startReplay serves the documents until ctx ends.
func startReplay(ctx context.Context, docs []bson.Raw) (*replay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &replay{Listener: l, docs: docs}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = r.serve(conn) // until the client ends it
			}()
		}
	}()
	return r, nil
}

func (r *replay) serve(conn net.Conn) error {
	header := make([]byte, 16)
	for {
		if _, err := io.ReadFull(conn, header); err != nil {
			return err
		}
		length, code := binary.LittleEndian.Uint32(header), binary.LittleEndian.Uint32(header[12:])
		if length < 16 || length > maxMessage {
			return errors.New("not MongoDB's protocol")
		}
		body := make([]byte, length-16)
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		var command bson.Raw
		var out []byte
		switch code {
		case opQuery: // the first one only: flags, a name, two numbers, the command
			i := 4
			for body[i] != 0 {
				i++
			}
			command = body[i+1+8:]
			out = append(make([]byte, 16), make([]byte, 20)...)
			binary.LittleEndian.PutUint32(out[32:], 1) // one document
		case opMsg: // flags, and a section with the command
			command = body[5:]
			out = make([]byte, 16+5)
		default:
			return fmt.Errorf("unknown message %d", code)
		}
		answer, err := r.answer(command)
		if err != nil {
			return err
		}
		out = append(out, answer...)
		binary.LittleEndian.PutUint32(out, uint32(len(out)))
		copy(out[8:12], header[4:8])
		binary.LittleEndian.PutUint32(out[12:], opMsg)
		if code == opQuery {
			binary.LittleEndian.PutUint32(out[12:], opReply)
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
	}
}

func (r *replay) answer(command bson.Raw) ([]byte, error) {
	elements, err := command.Elements()
	if err != nil || len(elements) == 0 {
		return nil, fmt.Errorf("a command: %w", err)
	}
	switch elements[0].Key() {
	case "find":
		c := &replayCursor{end: len(r.docs)}
		filter, _ := command.Lookup("filter").DocumentOK()
		if id, ok := filter.Lookup("_id").StringValueOK(); ok { // the one record that "after" names
			c.next = r.position(id)
			c.end = min(c.next+1, c.end)
		} else if or, ok := filter.Lookup("$or").ArrayOK(); ok {
			id, _ := or.Index(1).Document().Lookup("_id", "$gt").StringValueOK()
			c.next = min(r.position(id)+1, c.end)
		}
		size := firstBatch
		if n, ok := command.Lookup("batchSize").AsInt64OK(); ok {
			size = int(n)
		}
		if n, ok := command.Lookup("limit").AsInt64OK(); ok && n > 0 {
			c.end = min(c.end, c.next+int(n))
		}
		number := r.last.Add(1)
		r.cursors.Store(number, c)
		return r.batch("firstBatch", number, c, size)
	case "getMore":
		number := elements[0].Value().Int64()
		c, ok := r.cursors.Load(number)
		if !ok {
			return nil, errors.New("no such cursor")
		}
		size := maxBatch
		if n, ok := command.Lookup("batchSize").AsInt64OK(); ok && n > 0 {
			size = int(n)
		}
		return r.batch("nextBatch", number, c.(*replayCursor), size)
	case "hello", "isMaster", "ismaster":
		return bson.Marshal(bson.D{{Key: "isWritablePrimary", Value: true}, {Key: "ismaster", Value: true}, {Key: "helloOk", Value: true},
			{Key: "maxBsonObjectSize", Value: 16 << 20}, {Key: "maxMessageSizeBytes", Value: maxMessage}, {Key: "maxWriteBatchSize", Value: 100_000},
			{Key: "minWireVersion", Value: 0}, {Key: "maxWireVersion", Value: 25}, {Key: "readOnly", Value: false}, {Key: "ok", Value: 1.0}})
	}
	return bson.Marshal(bson.D{{Key: "ok", Value: 1.0}}) // to a ping, to new indexes
}

// position finds a record by its id, which counts up.
func (r *replay) position(id string) int {
	low, high := 0, len(r.docs)
	for low < high {
		if middle := (low + high) / 2; r.docs[middle].Lookup("_id").StringValue() < id {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// batch answers with the next documents.
func (r *replay) batch(name string, number int64, c *replayCursor, size int) ([]byte, error) {
	from, bytes := c.next, 0
	for c.next < c.end && c.next-from < size && bytes < maxBatch {
		bytes += len(r.docs[c.next])
		c.next++
	}
	if c.next == c.end {
		r.cursors.Delete(number)
		number = 0
	}
	return bson.Marshal(bson.D{
		{Key: "cursor", Value: bson.D{{Key: name, Value: r.docs[from:c.next]}, {Key: "id", Value: number}, {Key: "ns", Value: "d.c"}}},
		{Key: "ok", Value: 1.0},
	})
}
