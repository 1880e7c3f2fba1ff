package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
)

const (
	batchType = "application/x-ndjson"
	// batchInFlight is how many events of one request may be without their result in
	// the answer: more make RabbitMQ hardly faster, and each takes memory.
	batchInFlight = 256
	// batchFlush is how long a result may wait for others, to be sent with them.
	batchFlush = 10 * time.Millisecond
	// batchLinger is how long a client may go on sending after the end of the answer.
	batchLinger = 5 * time.Second
)

type (
	// batchEvent is one line of the request.
	batchEvent struct {
		ID      *string `json:"id"` // as an Idempotency-Key; a new UUIDv7 without one
		Name    string  `json:"name"`
		Content string  `json:"content"`
	}

	// batchResult is one line of the answer. Its status is what POST /send would
	// have answered.
	batchResult struct {
		Line   int    `json:"line"` // of the request, from 1
		Status int    `json:"status"`
		ID     string `json:"id,omitempty"`
		Detail string `json:"detail,omitempty"`

		reason error // for the log, when it is no mistake of the client's
	}

	// batchLine is a line that has been sent, or could not be.
	batchLine struct {
		number    int
		message   contract.Message
		err       error
		confirmed func() error // nil with an err
	}

	// batchEnd is the last line of the answer. Where it is missing, the answer is
	// not complete.
	batchEnd struct {
		Accepted int    `json:"accepted"`
		Refused  int    `json:"refused"`
		Detail   string `json:"detail,omitempty"` // why the rest of the body was not looked at
	}
)

// batch publishes many events: POST /send/batch with a JSON object on each line,
// {"name":…,"content":…} and an "id" if the client wants to choose it. The answer
// has a line for each, in the same order, as soon as its fate is known. A line that
// is wrong spoils no other. Memory does not grow with the body.
func (a *api) batch(w http.ResponseWriter, r *http.Request) error {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != batchType {
		return errBatchType
	}
	if err := a.publisher.Ready(); err != nil {
		return fmt.Errorf("%w: %w", queue.ErrUnavailable, err)
	}
	// Else net/http would swallow the rest of the body before the first result.
	// Not every ResponseWriter can do that: tests' cannot.
	_ = http.NewResponseController(w).EnableFullDuplex()
	w.Header().Set("Content-Type", batchType)

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// These two have room for all that is in flight: a client that reads slowly holds
	// up its own lines, and no look at a confirm.
	lines, results := make(chan batchLine, batchInFlight), make(chan batchResult, batchInFlight)
	go a.confirm(lines, results)
	answer, answered := &batchAnswer{w: w, inFlight: make(chan struct{}, batchInFlight)}, make(chan struct{})
	go func() { defer close(answered); answer.write(results, cancel) }()
	reader := bufio.NewReaderSize(slowBody{w, r.Body}, maxRequestBytes)
	line, unread := 1, ""
	for ; ctx.Err() == nil; line++ {
		if unread = a.stops(); unread != "" {
			break
		}
		content, err := readLine(reader)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			unread = cutOff(err)
			break
		}
		if err == nil && len(bytes.TrimSpace(content)) == 0 {
			continue // such as one more at the end
		}
		answer.inFlight <- struct{}{}
		lines <- a.sendLine(ctx, line, content, err != nil)
	}
	close(lines)
	<-answered
	if answer.failed > 0 && r.Context().Err() == nil {
		a.log.ErrorContext(r.Context(), "events of a batch were not accepted", "path", r.URL.Path, "events", answer.failed, "reason", answer.reason)
	}
	if unread != "" {
		unread += fmt.Sprintf("; what begins with line %d was not looked at, send it again", line)
	}
	answer.end(unread)
	if unread != "" {
		// a connection that is closed at once may take the end of the answer with it
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(batchLinger))
		_, _ = io.Copy(io.Discard, r.Body)
	}
	return nil
}

// stops tells why no more lines are taken, or nothing. Without RabbitMQ each of them
// would only be refused.
func (a *api) stops() string {
	select {
	case <-a.stopping:
		return "the service is shutting down"
	default:
	}
	if a.publisher.Ready() != nil {
		return "RabbitMQ is not available"
	}
	return ""
}

// cutOff tells why a body ended, or nothing when that is its end.
func cutOff(err error) string {
	switch {
	case errors.Is(err, io.EOF):
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("nothing came for %s", readTimeout)
	default:
		return "the body could not be read to its end"
	}
}

// readLine returns the next line, which is the reader's own until the next call.
// A bufio.ErrBufferFull is a line that is too long: all of it has been read. What
// an error cuts off is no line.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, io.EOF) && len(line) > 0 {
		return line, nil // the last one need not end in a newline
	}
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return nil, bufio.ErrBufferFull
}

// slowBody bounds the wait for each piece of a body, and not for all of it.
type slowBody struct {
	w    http.ResponseWriter
	body io.Reader
}

func (b slowBody) Read(p []byte) (int, error) {
	rc := http.NewResponseController(b.w)
	_ = rc.SetReadDeadline(time.Now().Add(readTimeout))
	n, err := b.body.Read(p)
	if err != nil {
		// it would end the wait for the confirms
		_ = rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// sendLine sends the event of one line.
func (a *api) sendLine(ctx context.Context, number int, content []byte, tooLong bool) batchLine {
	line := batchLine{number: number}
	if line.message, line.err = readBatchEvent(content, tooLong); line.err == nil {
		line.confirmed, line.err = a.publisher.Send(ctx, line.message)
	}
	return line
}

// confirm makes results of lines, one after the other: RabbitMQ's confirms come in
// the order of the messages, and many at a time.
func (a *api) confirm(lines <-chan batchLine, results chan<- batchResult) {
	defer close(results)
	for line := range lines {
		results <- a.result(line)
	}
}

func (a *api) result(line batchLine) batchResult {
	err := line.err
	if err == nil {
		err = line.confirmed()
	}
	if err == nil {
		a.view.Accepted(line.message)
		return batchResult{Line: line.number, Status: http.StatusAccepted, ID: line.message.ID}
	}
	p := newProblem(unsent{line.message.ID, err})
	result := batchResult{Line: line.number, Status: p.Status, ID: p.ID, Detail: p.Detail}
	if p.Status >= http.StatusInternalServerError {
		result.reason = err
	}
	return result
}

func readBatchEvent(content []byte, tooLong bool) (contract.Message, error) {
	if tooLong {
		return contract.Message{}, tooLarge()
	}
	var e batchEvent
	if err := contract.Unmarshal(content, &e, "id, name and content"); err != nil {
		return contract.Message{}, err
	}
	m := contract.Message{Event: contract.Event{Name: e.Name, Content: e.Content}, SentAt: time.Now()}
	if err := m.Validate(); err != nil {
		return m, err
	}
	if e.ID == nil {
		var err error
		m.ID, err = newID()
		return m, err
	}
	if m.ID = *e.ID; !fitID(m.ID) {
		return m, badRequest("id " + idRule)
	}
	return m, nil
}

// batchAnswer writes results as lines of JSON.
type batchAnswer struct {
	w        http.ResponseWriter
	inFlight chan struct{} // one for each line that has no result here yet
	out      bytes.Buffer
	counts   batchEnd
	failed   int   // results that are no mistake of the client's
	reason   error // of the last of them
	gone     error // why nothing can be written any more
}

// write takes results until there are no more. It calls lost when the client reads
// them no more, and goes on taking them: their senders must not wait for ever.
func (b *batchAnswer) write(results <-chan batchResult, lost func()) {
	encoder := json.NewEncoder(&b.out)
	encoder.SetEscapeHTML(false)
	ticker := time.NewTicker(batchFlush)
	defer ticker.Stop()
	for {
		select {
		case result, ok := <-results:
			if !ok {
				return
			}
			<-b.inFlight
			b.count(result)
			if b.gone == nil {
				b.gone = encoder.Encode(result)
			}
			if b.out.Len() < flushBytes {
				continue
			}
		case <-ticker.C:
		}
		if b.flush(); b.gone != nil {
			lost()
		}
	}
}

func (b *batchAnswer) count(r batchResult) {
	if r.Status == http.StatusAccepted {
		b.counts.Accepted++
	} else {
		b.counts.Refused++
	}
	if r.reason != nil {
		b.failed, b.reason = b.failed+1, r.reason
	}
}

// flush sends what there is to the client.
func (b *batchAnswer) flush() {
	if b.gone != nil || b.out.Len() == 0 {
		return
	}
	rc := http.NewResponseController(b.w)
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // as in data
	if _, b.gone = b.w.Write(b.out.Bytes()); b.gone == nil {
		b.gone = rc.Flush()
	}
	b.out.Reset()
}

// end writes the last line.
func (b *batchAnswer) end(detail string) {
	b.counts.Detail = detail
	if b.gone == nil {
		b.gone = json.NewEncoder(&b.out).Encode(b.counts)
	}
	b.flush()
}
