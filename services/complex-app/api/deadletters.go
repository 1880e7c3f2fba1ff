package api

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

const (
	// maxDeadLetters is the most that one answer lists: all of them are taken out of
	// the queue while it is read.
	maxDeadLetters = 1000
	// deadLetterTimeout bounds a look at the dead letters, or a redrive.
	deadLetterTimeout = time.Minute
)

// handleDeadLetters answers with the dead letters, the oldest first, and leaves them in their
// queue: GET /dead-letters.
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
		if jobs, err := a.store.Jobs(ctx, ids); err == nil {
			for i, d := range dead {
				if d.Job == "" {
					dead[i].Job = jobs[d.ID]
				}
			}
		}
	}
	return writeJSON(w, http.StatusOK, jsonType, dead)
}

// redriven is the answer to a redrive.
type redriven struct {
	Redriven int `json:"redriven"`
}

// handleRedrive sends all dead letters back to the queue, or the one that is named in the
// query or in a form: POST /dead-letters/redrive?id=….
func (a *api) handleRedrive(w http.ResponseWriter, r *http.Request) error {
	id, err := whichDead(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), deadLetterTimeout)
	defer cancel()
	n, err := a.dead.Redrive(ctx, id)
	a.rabbitMQ.note(r.Context(), err)
	if err != nil {
		return fmt.Errorf("redrive: %w", err)
	}
	return writeJSON(w, http.StatusOK, jsonType, redriven{n})
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
