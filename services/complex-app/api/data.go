package api

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"

	"keda-p2/services/contract/records"
)

// flushBytes is how much of the answer is collected before it is written.
const flushBytes = 64 << 10

// handleData answers with the records as a JSON array, in the order in which they were
// stored: GET /data?name=…&after=…&limit=…. It is written while it is read, so that
// memory does not grow with the collection.
func (a *api) handleData(w http.ResponseWriter, r *http.Request) error {
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead { // not the whole collection, only to throw it away
		query.Limit = 1
	}
	var out bytes.Buffer
	started := false
	w.Header().Set("Content-Type", jsonType) // an error sets its own
	flush := func() error {
		setWriteDeadline(w)
		_, err := out.WriteTo(w)
		if err == nil && !started {
			_ = http.NewResponseController(w).Flush() // the client sees the first record at once
		}
		started = true
		return err
	}
	out.WriteString("[")
	for record, err := range a.store.List(r.Context(), query) {
		switch {
		case errors.Is(err, records.ErrUnknown):
			return err
		case err != nil && !started:
			err = fmt.Errorf("%w: %w", errStore, err)
			a.mongoDB.note(r.Context(), err)
			return err
		case err != nil:
			a.abort(r, err)
		}
		if started {
			out.WriteString(",\n")
		}
		// a pointer, or the library would copy each record to the heap
		if err := json.MarshalWrite(&out, &record, encoding); err != nil {
			a.abort(r, err)
		}
		if (!started || out.Len() >= flushBytes) && flush() != nil {
			return nil // the client is gone
		}
	}
	a.mongoDB.note(r.Context(), nil)
	out.WriteString("]\n")
	_ = flush() // fails only when the client is gone
	return nil
}

// abort ends an answer that has begun and cannot be completed. The connection is cut
// before the answer's end, which every client sees as an error; without it a part of
// the records would look like all of them.
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
	q := records.Query{Name: values.Get("name"), After: values.Get("after"), Settled: true}
	if values.Has("limit") {
		q.Limit, err = strconv.ParseInt(values.Get("limit"), 10, 64)
		if err != nil || q.Limit < 1 {
			return records.Query{}, badRequest("limit must be a whole number from 1")
		}
	}
	return q, nil
}
