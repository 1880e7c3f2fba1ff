package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
)

const (
	batchType     = "application/x-ndjson"
	maxBatchBytes = 4 << 20
	maxBatchLines = 10_000
	// batchReadTimeout bounds a body that is sent slowly.
	batchReadTimeout = time.Minute
	// batchInFlight is how many events of a batch wait for their confirm at a time.
	// More make RabbitMQ hardly faster.
	batchInFlight = 256
	// maxLineErrors is how many of the lines that were not accepted the answer names.
	maxLineErrors = 100
)

type (
	// batchAnswer counts the lines of a batch. Empty lines do not count.
	batchAnswer struct {
		Accepted int         `json:"accepted"`
		Refused  int         `json:"refused"`
		Errors   []lineError `json:"errors"` // the first of those refused
	}

	lineError struct {
		Line   int    `json:"line"` // of the body, from 1
		Detail string `json:"detail"`
	}

	// batchProblem is the answer when RabbitMQ did not take all of the valid lines.
	batchProblem struct {
		problem
		batchAnswer
	}
)

// sendBatch publishes many events: POST /send/batch with a JSON object on each line.
// It answers when RabbitMQ has confirmed all valid lines. With an Idempotency-Key k line
// n has the id k-n, so the same batch may be sent again after any failure.
func (a *api) sendBatch(w http.ResponseWriter, r *http.Request) error {
	key, err := idempotencyKey(r, maxKeyBytes-len(fmt.Sprint("-", maxBatchLines)))
	if err != nil {
		return err
	}
	setReadDeadline(w, time.Now().Add(batchReadTimeout))
	body, _, err := readBody(w, r, maxBatchBytes, batchType)
	if err != nil {
		return err
	}
	body = bytes.TrimRight(body, " \t\r\n") // not at the start: the numbers of the lines count
	switch {                                // before it is split: 4 MiB may be as many lines
	case r.URL.RawQuery != "":
		return badRequest("the events of a batch are in the body; this path takes no parameters")
	case len(body) == 0:
		return badRequest("the batch has no events")
	case bytes.Count(body, []byte("\n")) >= maxBatchLines:
		return refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the batch has more than %d lines", maxBatchLines)}
	}

	lines := bytes.Split(body, []byte("\n"))
	var mu sync.Mutex // for the answer
	answer := batchAnswer{Errors: []lineError{}}
	note := func(line int, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			answer.Accepted++
			return
		}
		answer.Refused++
		if len(answer.Errors) < maxLineErrors {
			answer.Errors = append(answer.Errors, lineError{line, newProblem(err).Detail})
		}
	}
	// RabbitMQ gets the events whether or not the client still waits for the answer.
	ctx := context.WithoutCancel(r.Context())
	publishing, going := errgroup.WithContext(ctx)
	publishing.SetLimit(batchInFlight)
	for i, line := range lines {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		m, err := readLine(line, key, i+1)
		if err == nil && going.Err() != nil {
			err = queue.ErrUnavailable // a line before failed: do not wait for each of them
		}
		if err != nil {
			note(i+1, err)
			continue
		}
		publishing.Go(func() error {
			err := a.publisher.Publish(ctx, m)
			note(i+1, err)
			return err
		})
	}
	err = publishing.Wait()
	a.rabbitMQ.note(err)
	switch {
	case err != nil:
		p := newProblem(err)
		p.Detail = "RabbitMQ did not take all events; send the whole batch again"
		if key != "" {
			p.Detail += " with the same Idempotency-Key, so that none counts twice"
		}
		writeProblem(w, p.Status, batchProblem{p, answer})
		return nil
	case answer.Refused > 0:
		return writeJSON(w, http.StatusMultiStatus, answer)
	}
	return writeJSON(w, http.StatusAccepted, answer)
}

func readLine(line []byte, key string, number int) (contract.Message, error) {
	if len(line) > maxRequestBytes {
		return contract.Message{}, tooLarge(maxRequestBytes)
	}
	event, err := contract.Decode(line)
	if err != nil {
		return contract.Message{}, err
	}
	id := fmt.Sprintf("%s-%d", key, number)
	if key == "" {
		id, err = newID()
	}
	return contract.Message{Event: event, ID: id, SentAt: time.Now()}, err
}
