package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	// maxDeadLetters is the most that one answer lists: all of them are taken
	// from the queue while it is read.
	maxDeadLetters = 1000
	// deadLetterTimeout bounds a look at the dead letters, or a redrive.
	deadLetterTimeout = time.Minute
)

// listDead answers with the dead letters, the oldest first, and leaves them in
// their queue: GET /dead-letters.
func (a *api) listDead(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), deadLetterTimeout)
	defer cancel()
	dead, err := a.dead.List(ctx, maxDeadLetters)
	if err != nil {
		return fmt.Errorf("list dead letters: %w", err)
	}
	// The broker does not know which Job had a message last; its record does.
	// Without MongoDB the dead letters are shown all the same.
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

// redriven is the answer to a redrive.
type redriven struct {
	Redriven int `json:"redriven"`
}

// redrive sends all dead letters back to the queue, or the one that is named:
// POST /dead-letters/redrive?id=….
func (a *api) redrive(w http.ResponseWriter, r *http.Request) error {
	values, err := parseParameters(r.URL.RawQuery, "id")
	if err != nil {
		return err
	}
	if values.Has("id") && values.Get("id") == "" {
		return badRequest("id is empty; leave it out to redrive all")
	}
	ctx, cancel := context.WithTimeout(r.Context(), deadLetterTimeout)
	defer cancel()
	n, err := a.dead.Redrive(ctx, values.Get("id"))
	a.view.Redriven() // some of them, even when it was interrupted
	if err != nil {
		return fmt.Errorf("redrive: %w", err)
	}
	return writeJSON(w, http.StatusOK, redriven{n})
}

func writeJSON(w http.ResponseWriter, status int, value any) error {
	body, err := json.Marshal(value)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // fails only when the client is gone
	return nil
}
