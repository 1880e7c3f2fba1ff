package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"keda-p2/services/contract/records"
)

const (
	// writeTimeout bounds each write to a client that reads slowly.
	writeTimeout = 30 * time.Second
	// flushBytes is how much of the answer is collected before it is written.
	flushBytes = 32 << 10
)

// data answers with the records as a JSON array, in the order in which they
// were stored: GET /data?name=…&after=…&limit=…. It is written while it is read,
// so that memory does not grow with the collection.
func (a *api) data(w http.ResponseWriter, r *http.Request) error {
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	out := bytes.NewBufferString("[")
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	started, first := false, true
	flush := func() error {
		if !started {
			w.Header().Set("Content-Type", "application/json")
			started = true
		}
		// not every ResponseWriter can do that: tests' cannot
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := w.Write(out.Bytes())
		out.Reset()
		return err
	}
	for record, err := range a.store.List(r.Context(), query) {
		switch {
		case errors.Is(err, records.ErrUnknown):
			return err
		case err != nil && !started:
			return fmt.Errorf("%w: %w", errStore, err)
		case err != nil:
			a.abort(r, err)
		}
		if !first {
			out.WriteByte(',')
		}
		first = false
		if err := encoder.Encode(record); err != nil {
			a.abort(r, err)
		}
		if out.Len() >= flushBytes {
			if flush() != nil {
				return nil // the client is gone
			}
		}
	}
	out.WriteString("]\n")
	_ = flush() // fails only when the client is gone
	return nil
}

// abort ends an answer that has begun and cannot be completed. The connection
// is cut before the answer's end, which every client sees as an error; without
// it a part of the records would look like all of them.
func (a *api) abort(r *http.Request, err error) {
	if r.Context().Err() == nil {
		a.log.ErrorContext(r.Context(), "answer cut off", "method", r.Method, "path", r.URL.Path, "reason", err.Error())
	}
	panic(http.ErrAbortHandler)
}

func parseQuery(encoded string) (records.Query, error) {
	values, err := parseParameters(encoded, "limit", "after", "name")
	if err != nil {
		return records.Query{}, err
	}
	q := records.Query{Name: values.Get("name"), After: values.Get("after")}
	if values.Has("limit") {
		q.Limit, err = strconv.ParseInt(values.Get("limit"), 10, 64)
		if err != nil || q.Limit < 1 {
			return records.Query{}, badRequest("limit must be a whole number from 1")
		}
	}
	return q, nil
}
