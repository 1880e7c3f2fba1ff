package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// replay is a server for MongoDB's protocol. It has one collection, in memory and in
// the order of GET /data, and answers its query as MongoDB does with an index: with
// the next documents. To every other query it answers that there is nothing.
//
// The sandbox's FerretDB reads and sorts the whole collection for each find: minutes
// for a million records. Replay is faster than any real server, so the ratio to the
// raw client is the worst that there can be.
type replay struct {
	net.Listener
	docs    []bson.Raw
	cursors sync.Map // id → position
	last    atomic.Int64
}

// The protocol's codes, and the sizes of a batch: MongoDB's defaults.
const (
	opReply    = 1
	opQuery    = 2004
	opMsg      = 2013
	firstBatch = 101
	maxBatch   = 16 << 20 // bytes
	maxMessage = 48_000_000
)

// startReplay serves the documents until it is closed.
func startReplay(docs []bson.Raw) (*replay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &replay{Listener: l, docs: docs}
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
			out = make([]byte, 16+20)
			binary.LittleEndian.PutUint32(out[32:], 1) // one document
			code = opReply
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
		binary.LittleEndian.PutUint32(out[12:], code)
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
	case "hello", "isMaster", "ismaster":
		return bson.Marshal(bson.D{{Key: "isWritablePrimary", Value: true}, {Key: "ismaster", Value: true}, {Key: "helloOk", Value: true},
			{Key: "localTime", Value: time.Now()}, {Key: "maxBsonObjectSize", Value: 16 << 20}, {Key: "maxMessageSizeBytes", Value: maxMessage}, {Key: "maxWriteBatchSize", Value: 100_000},
			{Key: "minWireVersion", Value: 0}, {Key: "maxWireVersion", Value: 25}, {Key: "readOnly", Value: false}, {Key: "ok", Value: 1.0}})
	case "find":
		limit, _ := command.Lookup("limit").AsInt64OK()
		filter, _ := command.Lookup("filter").DocumentOK()
		fields, err := filter.Elements()
		// all records: for the raw client, and for GET /data, which leaves out the youngest
		if err == nil && limit == 0 && (len(fields) == 0 || fields[0].Key() == "$nor") {
			return r.batch(command, "firstBatch", r.last.Add(1), 0, firstBatch)
		}
	case "getMore":
		id := elements[0].Value().Int64()
		next, ok := r.cursors.LoadAndDelete(id)
		if !ok {
			return nil, errors.New("no such cursor")
		}
		return r.batch(command, "nextBatch", id, next.(int), len(r.docs))
	}
	return bson.Marshal(bson.D{{Key: "cursor", Value: cursor("firstBatch", nil, 0)}, {Key: "n", Value: 0}, {Key: "ok", Value: 1.0}})
}

// batch answers with the next documents, as many as the command asks for, or size.
func (r *replay) batch(command bson.Raw, name string, id int64, from, size int) ([]byte, error) {
	if n, ok := command.Lookup("batchSize").AsInt64OK(); ok && n > 0 {
		size = int(n)
	}
	next, bytes := from, 0
	for next < len(r.docs) && next-from < size && bytes < maxBatch {
		bytes += len(r.docs[next])
		next++
	}
	if next == len(r.docs) {
		id = 0
	} else {
		r.cursors.Store(id, next)
	}
	return bson.Marshal(bson.D{{Key: "cursor", Value: cursor(name, r.docs[from:next], id)}, {Key: "ok", Value: 1.0}})
}

func cursor(name string, docs []bson.Raw, id int64) bson.D {
	if docs == nil {
		docs = []bson.Raw{}
	}
	return bson.D{{Key: name, Value: docs}, {Key: "id", Value: id}, {Key: "ns", Value: "d.c"}}
}
