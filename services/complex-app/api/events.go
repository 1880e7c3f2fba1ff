package api

import (
	"fmt"
	"net/http"
	"time"
)

const (
	// eventTimeout bounds the write of one update to a page that does not read.
	eventTimeout = 10 * time.Second
	// eventRetry is how long a page waits before it connects again.
	eventRetry = 2 * time.Second
)

// events sends the page what is new, as server-sent events: GET /events. It ends
// when the page is closed, reads too slowly, or the service shuts down.
func (a *api) events(w http.ResponseWriter, r *http.Request) error {
	watcher, err := a.view.Watch()
	if err != nil {
		return err
	}
	defer watcher.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would collect the events
	rc := http.NewResponseController(w)
	send := func(format string, args ...any) error {
		if err := rc.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, format, args...); err != nil {
			return err
		}
		return rc.Flush()
	}
	if send("retry: %d\n\n", eventRetry.Milliseconds()) != nil {
		return nil // the client is gone
	}
	for {
		select {
		case update, ok := <-watcher.Updates:
			if !ok || send("data: %s\n\n", update) != nil {
				return nil
			}
		case <-r.Context().Done():
			return nil
		}
	}
}
