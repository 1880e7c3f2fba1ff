package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
)

const (
	batchType     = "application/x-ndjson"
	maxBatchBytes = 4 << 20
	maxBatchLines = 10_000
	// batchReadTimeout bounds the whole body: 4 MiB in this time are 1.1 Mbit/s. A slow
	// client keeps one of the places for batches for so long.
	batchReadTimeout = 30 * time.Second
	// batchInFlight is how many events of a batch wait for their confirm at a time.
	// More make RabbitMQ hardly faster.
	batchInFlight = 256
	// maxLineErrors is how many of the refused lines the answer names.
	maxLineErrors = 100

	sendAgain = "; send the whole batch again with the same Idempotency-Key: without one, those that were accepted would count twice"
)

// batchAnswer counts the lines of a batch. Empty lines do not count.
type batchAnswer struct {
	Accepted int         `json:"accepted"`
	Refused  int         `json:"refused"`
	Errors   []lineError `json:"errors"` // of the first refused lines
}

type lineError struct {
	Line   int    `json:"line"`         // of the body, from 1
	ID     string `json:"id,omitempty"` // only of a valid line
	Detail string `json:"detail"`
}

// handleSendBatch publishes many events: POST /send/batch with one JSON object per line.
// It answers when RabbitMQ has confirmed all valid lines, and 202 means that these are all
// lines. With an Idempotency-Key k line n has the id k-n, so the same batch may be sent
// again after any failure.
func (a *api) handleSendBatch(w http.ResponseWriter, r *http.Request) error {
	key, err := idempotencyKey(r, maxKeyBytes-len(fmt.Sprint("-", maxBatchLines)))
	if err != nil {
		return err
	}
	lines, err := readLines(w, r)
	if err != nil {
		return err
	}
	publishing, failing := errgroup.WithContext(context.WithoutCancel(r.Context()))
	publishing.SetLimit(batchInFlight)
	events, errs := 0, make([]error, len(lines))
	for i, line := range lines {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		events++
		m, err := readLine(line, key, i+1)
		switch {
		case err != nil:
			errs[i] = err
		case failing.Err() != nil: // do not let each line wait for the same timeout
			errs[i] = unsent(m.ID, queue.ErrUnavailable)
		default:
			publishing.Go(func() error {
				errs[i] = a.publish(r.Context(), m)
				return errs[i]
			})
		}
	}
	failed := publishing.Wait()
	b := newBatchAnswer(events, errs)
	switch {
	case failed != nil:
		p := problem{Status: newProblem(failed).Status, Detail: "RabbitMQ is not available and did not confirm all events" + sendAgain, Batch: &b}
		return fmt.Errorf("%w: %w", p, failed)
	case b.Refused > 0:
		return problem{Status: http.StatusUnprocessableEntity, Detail: "some lines are invalid and were refused, the others were accepted; correct them where they are" + sendAgain, Batch: &b}
	}
	return writeJSON(w, http.StatusAccepted, jsonType, b)
}

// newBatchAnswer takes the error of each line; nil is an accepted or an empty one.
func newBatchAnswer(events int, errs []error) batchAnswer {
	b := batchAnswer{Accepted: events, Errors: []lineError{}}
	for i, err := range errs {
		if err == nil {
			continue
		}
		b.Accepted--
		b.Refused++
		if len(b.Errors) < maxLineErrors {
			p := newProblem(err)
			b.Errors = append(b.Errors, lineError{i + 1, p.ID, p.Detail})
		}
	}
	return b
}

// readLines reads the whole body.
func readLines(w http.ResponseWriter, r *http.Request) ([][]byte, error) {
	if r.URL.RawQuery != "" {
		return nil, badRequest("the events of a batch are in the body; this path takes no parameters")
	}
	setReadDeadline(w, time.Now().Add(batchReadTimeout))
	body, _, err := readInput(w, r, maxBatchBytes, batchType)
	if err != nil {
		return nil, err
	}
	body = bytes.TrimRight(body, " \t\r\n") // not at the start: the numbers of the lines count
	if len(body) == 0 {
		return nil, badRequest("the batch has no events")
	}
	if bytes.Count(body, []byte("\n")) >= maxBatchLines { // before it is split: 4 MiB may be as many lines
		return nil, problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the batch has more than %d lines", maxBatchLines)}
	}
	return bytes.Split(body, []byte("\n")), nil
}

// readLine makes a message of a line.
func readLine(line []byte, key string, number int) (contract.Message, error) {
	if len(line) > maxRequestBytes {
		return contract.Message{}, tooLarge("line", maxRequestBytes)
	}
	event, err := contract.Decode(line)
	if err != nil {
		return contract.Message{}, err
	}
	id := fmt.Sprintf("%s-%d", key, number)
	if key == "" {
		id = contract.NewID()
	}
	return contract.Message{Event: event, ID: id, SentAt: time.Now()}, nil
}
