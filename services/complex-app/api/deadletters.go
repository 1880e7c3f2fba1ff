package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"keda-p2/services/contract/queue"
)

const (
	// maxDeadLetters is the most that one answer lists: all of them are taken out of
	// the queue while it is read.
	maxDeadLetters = 1000
	// deadLetterTimeout bounds a look at the dead letters, or a redrive.
	deadLetterTimeout = time.Minute
)

// listDead answers with the dead letters, the oldest first, and leaves them in their
// queue: GET /dead-letters. Those who ask while others wait for a look share it.
func (a *api) listDead(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), deadLetterTimeout)
	defer cancel()
	shared, err, _ := a.looks.Do("", func() (any, error) { return a.dead.List(ctx, maxDeadLetters) })
	if err != nil {
		return fmt.Errorf("list dead letters: %w", err)
	}
	dead := slices.Clone(shared.([]queue.DeadLetter))
	// RabbitMQ does not know which Job had a message last; its record does. Without
	// MongoDB the dead letters are shown all the same.
	var ids []string
	for _, d := range dead {
		if d.Job == "" {
			ids = append(ids, d.ID)
		}
	}
	if len(ids) > 0 {
		if jobs, err := a.store.Jobs(ctx, ids); err == nil {
			for i, d := range dead {
				if d.Job == "" {
					dead[i].Job = jobs[d.ID]
				}
			}
		}
	}
	return writeJSON(w, http.StatusOK, dead)
}

// redriveDead sends all dead letters back to the queue, or the one that is named in the
// query or in a form: POST /dead-letters/redrive?id=….
func (a *api) redriveDead(w http.ResponseWriter, r *http.Request) error {
	return removeDead(w, r, a.dead.Redrive, "redriven", "sent back")
}

// discardDead removes all dead letters, or the one that is named:
// DELETE /dead-letters?id=….
func (a *api) discardDead(w http.ResponseWriter, r *http.Request) error {
	return removeDead(w, r, a.dead.Discard, "discarded", "discarded")
}

// removeDead answers with how many there were, also when some were left.
func removeDead(w http.ResponseWriter, r *http.Request, remove func(context.Context, string) (int, error), member, verb string) error {
	id, err := whichDead(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), deadLetterTimeout)
	defer cancel()
	n, err := remove(ctx, id)
	switch {
	case errors.Is(err, queue.ErrNoDeadLetter):
		return err
	case err != nil:
		return partly{fmt.Errorf("%d dead letters %s: %w", n, verb, err), fmt.Sprintf("%d dead letters were %s", n, verb), n}
	}
	return writeJSON(w, http.StatusOK, map[string]int{member: n})
}

// whichDead returns the id of the one dead letter that is meant, or "" for all.
func whichDead(w http.ResponseWriter, r *http.Request) (string, error) {
	encoded := r.URL.RawQuery
	body, _, err := readBody(w, r, maxRequestBytes, formType)
	if err != nil {
		return "", err
	}
	if body != nil {
		if encoded != "" {
			return "", badRequest("give the id in the query or in the body, not in both")
		}
		encoded = string(body)
	}
	values, err := parseParameters(encoded, "id")
	if err != nil {
		return "", err
	}
	if values.Has("id") && values.Get("id") == "" {
		return "", badRequest("id is empty; leave it out to mean all")
	}
	return values.Get("id"), nil
}
