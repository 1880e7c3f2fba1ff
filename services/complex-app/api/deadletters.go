package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"keda-p2/services/contract/queue"
)

const (
	// maxDeadLetters is the most that one answer lists: all of them are taken out of
	// the queue while it is read.
	maxDeadLetters = 1000
	// maxWhichBytes is enough for every id, also when each byte is written as %xx.
	maxWhichBytes = 1 << 10
	// deadLetterTimeout bounds a look at the dead letters, or a redrive.
	deadLetterTimeout = time.Minute
)

// handleDeadLetters answers with the dead letters, the oldest first, and leaves them in
// their queue: GET /dead-letters.
func (a *api) handleDeadLetters(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), deadLetterTimeout)
	defer cancel()
	dead, err := a.dead.List(ctx, maxDeadLetters)
	a.rabbitMQ.note(r.Context(), err)
	if err != nil {
		return fmt.Errorf("list dead letters: %w", err)
	}
	// RabbitMQ does not know which Job had a message last; its record does. Without
	// MongoDB the dead letters are shown all the same.
	var ids []string
	for _, d := range dead {
		if d.Job == "" {
			ids = append(ids, d.ID)
		}
	}
	if len(ids) > 0 {
		jobs, _ := a.store.Jobs(ctx, ids)
		for i, d := range dead {
			dead[i].Job = cmp.Or(d.Job, jobs[d.ID])
		}
	}
	return writeJSON(w, http.StatusOK, jsonType, dead)
}

// handleRemove sends all dead letters back to the queue, or the one with the id in the
// query or in a form: POST /dead-letters/redrive?id=…. Or it discards them:
// DELETE /dead-letters?id=…. It answers with how many, also when it was cut short.
func (a *api) handleRemove(remove func(deadLetters, context.Context, string) (int, error), member, verb string) http.HandlerFunc {
	return a.answer(func(w http.ResponseWriter, r *http.Request) error {
		id, err := whichDead(w, r)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(r.Context(), deadLetterTimeout)
		defer cancel()
		n, err := remove(a.dead, ctx, id)
		a.rabbitMQ.note(r.Context(), err)
		switch {
		case errors.Is(err, queue.ErrNoDeadLetter):
			return err
		case err != nil:
			p := newProblem(err)
			p.Detail, p.Done = fmt.Sprintf("%d dead letters were %s; then %s", n, verb, p.Detail), &n
			return fmt.Errorf("%w: %w", p, err)
		}
		return writeJSON(w, http.StatusOK, jsonType, map[string]int{member: n})
	})
}

// whichDead returns the id of the one dead letter that is meant, or "" for all.
func whichDead(w http.ResponseWriter, r *http.Request) (string, error) {
	input, _, err := readInput(w, r, maxWhichBytes, formType)
	if err != nil {
		return "", err
	}
	values, err := parseParameters(string(input), "id")
	if err != nil {
		return "", err
	}
	if values.Has("id") && values.Get("id") == "" {
		return "", badRequest("id is empty; leave it out to mean all")
	}
	return values.Get("id"), nil
}
