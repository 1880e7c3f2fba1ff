package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/semaphore"

	"keda-p2/services/contract"
)

const (
	// maxRequestBytes bounds the query and the body, as they are sent.
	maxRequestBytes = contract.MaxEventBytes
	// maxKeyBytes is the longest message-id that AMQP carries.
	maxKeyBytes = 255
	// readTimeout bounds a body that is sent slowly.
	readTimeout = 10 * time.Second
	// writeTimeout bounds each write to a client that reads slowly. It extends that of the
	// server, which counts from the request.
	writeTimeout = 10 * time.Second
	// throttleTimeout bounds the wait for other requests of the same kind.
	throttleTimeout = 5 * time.Second
)

// answer makes a handler that answers with an error, and logs it when it is internal.
func (a *api) answer(handle func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := handle(w, r)
		if err == nil {
			return
		}
		p := newProblem(err)
		if p.Status == http.StatusInternalServerError && r.Context().Err() == nil {
			a.log.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "id", p.ID, "reason", err.Error())
		}
		// Read what is left of the body first, as far as it may go: a client that still sends
		// when the connection is closed would see that and not the answer. One that asks with
		// "Expect" whether to send does not send it.
		if r.Header.Get("Expect") == "" && r.ContentLength != 0 {
			_, _ = io.CopyN(io.Discard, r.Body, maxBatchBytes)
		}
		if p.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "2") // seconds
		}
		_ = writeJSON(w, p.Status, "application/problem+json", p) // strings and numbers only
	}
}

// inTime bounds the wait for a body, also for one that no handler reads: net/http reads a
// short one before it sends the answer.
func inTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limitBody(w, r)
		next.ServeHTTP(w, r)
	})
}

func limitBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		setReadDeadline(w, time.Now().Add(readTimeout))
	}
}

// onlyUnder refuses requests for other hosts, if there are any: a page of another site
// could let its name point here (DNS rebinding). It cannot do so with an address, or with
// localhost.
func (a *api) onlyUnder(hosts []string) func(http.Handler) http.Handler {
	refused := a.answer(func(http.ResponseWriter, *http.Request) error { return errWrongHost })
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host := strings.ToLower((&url.URL{Host: r.Host}).Hostname())
			if len(hosts) == 0 || host == "localhost" || net.ParseIP(host) != nil || slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
				next.ServeHTTP(w, r)
				return
			}
			refused(w, r)
		})
	}
}

// throttle lets n requests through at a time.
func (a *api) throttle(n int64) func(http.Handler) http.Handler {
	places := semaphore.NewWeighted(n)
	busy := a.answer(func(http.ResponseWriter, *http.Request) error { return errBusy })
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !places.TryAcquire(1) { // a timer for each request would cost a tenth of /send
				ctx, cancel := context.WithTimeout(r.Context(), throttleTimeout)
				defer cancel()
				err := places.Acquire(ctx, 1)
				limitBody(w, r) // again: it has waited
				if err != nil {
					busy(w, r)
					return
				}
			}
			defer places.Release(1)
			next.ServeHTTP(w, r)
		})
	}
}

// setReadDeadline and setWriteDeadline do nothing in tests, whose ResponseWriters have
// no connection.
func setReadDeadline(w http.ResponseWriter, at time.Time) {
	_ = http.NewResponseController(w).SetReadDeadline(at)
}

func setWriteDeadline(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
}

// encoding replaces bytes that are not UTF-8, which ids and names of others may have.
var encoding = jsontext.AllowInvalidUTF8(true)

func writeJSON(w http.ResponseWriter, status int, contentType string, value any) error {
	body, err := json.Marshal(value, encoding)
	if err != nil {
		return err
	}
	write(w, status, contentType, append(body, '\n'))
	return nil
}

// write ignores an error of the connection: the client is gone.
func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	setWriteDeadline(w)
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// readInput reads a whole body of one of the given types, or the query when there is no
// body: it is written like a form. Both at once would leave one of them out, and is an
// error.
func readInput(w http.ResponseWriter, r *http.Request, limit int64, types ...string) (input []byte, mediaType string, err error) {
	query := r.URL.RawQuery
	if len(query) > maxRequestBytes {
		return nil, "", tooLarge("query", maxRequestBytes)
	}
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		w.Header().Set("Accept-Encoding", "identity") // RFC 9110, for a 415
		return nil, "", problem{Status: http.StatusUnsupportedMediaType, Detail: "the body is compressed; send it as it is"}
	}
	if r.ContentLength > limit {
		return nil, "", tooLarge("body", limit)
	}
	input, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
		return nil, "", tooLarge("body", limit)
	}
	if err != nil {
		return nil, "", badRequest("the body could not be read to its end")
	}
	setReadDeadline(w, time.Time{}) // or it would end the wait for the confirm
	switch {
	case len(input) == 0:
		return []byte(query), formType, nil
	case query != "":
		return nil, "", badRequest("the request has a query and a body; give all in one of them")
	}
	mediaType, _, err = mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(types, mediaType) {
		return nil, "", problem{Status: http.StatusUnsupportedMediaType, Detail: "the Content-Type must be " + strings.Join(types, " or ")}
	}
	return input, mediaType, nil
}

// parseParameters reads a URL-encoded query or form. What is not allowed, or given
// twice, is an error: ignoring it would lose it silently.
func parseParameters(encoded string, allowed ...string) (url.Values, error) {
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return nil, badRequest("not URL-encoded: " + err.Error())
	}
	for field, all := range values {
		switch {
		case strings.HasPrefix(field, "{"):
			return nil, badRequest("this looks like JSON; send it with Content-Type: application/json")
		case !slices.Contains(allowed, field):
			return nil, badRequest(fmt.Sprintf("unknown field %.80q; only %s are allowed", field, strings.Join(allowed, ", ")))
		case len(all) > 1:
			return nil, badRequest(field + " is given more than once")
		}
	}
	return values, nil
}

// idempotencyKey returns the request's Idempotency-Key, or "" when it has none. The
// key may be in quotes, as the header's IETF draft writes it.
func idempotencyKey(r *http.Request, maxBytes int) (string, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return "", nil
	}
	key := keys[0]
	if len(key) > 1 && strings.HasPrefix(key, `"`) && strings.HasSuffix(key, `"`) {
		key = key[1 : len(key)-1]
	}
	unfit := func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }
	if len(keys) > 1 || key == "" || len(key) > maxBytes || strings.ContainsFunc(key, unfit) {
		return "", badRequest(fmt.Sprintf("Idempotency-Key must be one value of 1 to %d visible ASCII characters without quotes and backslashes", maxBytes))
	}
	return key, nil
}

// outage logs when a server becomes unavailable and when it is available again, instead
// of one line for each request.
type outage struct {
	server string
	log    *slog.Logger
	signs  []error      // the errors that mean an outage
	failed atomic.Int64 // requests since it began
}

// note takes the error of one use of the server, or nil. It ignores errors that are no
// sign of an outage, and those of clients that hung up.
func (o *outage) note(ctx context.Context, err error) {
	isSign := func(sign error) bool { return errors.Is(err, sign) }
	if err != nil && (ctx.Err() != nil || !slices.ContainsFunc(o.signs, isSign)) {
		return
	}
	if err != nil {
		if o.failed.Add(1) == 1 {
			o.log.Error("requests fail because "+o.server+" is not available", "reason", err.Error())
		}
	} else if n := o.failed.Swap(0); n > 0 {
		o.log.Info(o.server+" is available again", "failed", n)
	}
}
