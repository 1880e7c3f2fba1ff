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
	flushBytes = 64 << 10
)

// data answers with the records as a JSON array, in the order in which they
// were stored: GET /data?name=…&after=…&limit=…. It is written while it is read,
// so that memory does not grow with the collection.
func (a *api) data(w http.ResponseWriter, r *http.Request) error {
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	out := []byte("[")
	started := false
	flush := func() error {
		if !started {
			w.Header().Set("Content-Type", "application/json")
		}
		rc := http.NewResponseController(w)
		// not every ResponseWriter can do that: tests' cannot
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := w.Write(out)
		if err == nil && !started {
			_ = rc.Flush() // the client sees the first record at once
		}
		started, out = true, out[:0]
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
		if started {
			out = append(out, ",\n"...)
		}
		if out, err = appendRecord(out, record); err != nil {
			a.abort(r, err)
		}
		if !started || len(out) >= flushBytes {
			if flush() != nil {
				return nil // the client is gone
			}
		}
	}
	out = append(out, "]\n"...)
	_ = flush() // fails only when the client is gone
	return nil
}

// appendRecord appends what json.Marshal makes of a record, in a fifth of the time:
// see docs/benchmarks.md.
func appendRecord(b []byte, r records.Record) ([]byte, error) {
	var err error
	field := func(name, value string) {
		b = append(append(append(b, `,"`...), name...), `":`...)
		if err == nil {
			b, err = appendString(b, value)
		}
	}
	date := func(name string, at time.Time) {
		if name == "storedAt" || !at.IsZero() {
			b = append(append(append(b, `,"`...), name...), `":"`...)
			b = append(at.AppendFormat(b, time.RFC3339Nano), '"')
		}
	}
	b = append(b, `{"id":`...)
	b, err = appendString(b, r.ID)
	field("name", r.Name)
	field("content", r.Content)
	field("status", string(r.Status))
	field("job", r.Job)
	b = strconv.AppendInt(append(b, `,"attempts":`...), int64(r.Attempts), 10)
	date("sentAt", r.SentAt)
	date("storedAt", r.StoredAt)
	date("finishedAt", r.FinishedAt)
	return append(b, '}'), err
}

// appendString leaves to encoding/json whatever is not plain ASCII.
func appendString(b []byte, s string) ([]byte, error) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			var out bytes.Buffer
			encoder := json.NewEncoder(&out)
			encoder.SetEscapeHTML(false)
			err := encoder.Encode(s)
			return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...), err
		}
	}
	return append(append(append(b, '"'), s...), '"'), nil
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
