// Package api is complex-app's HTTP interface: one file for each route, http.go for
// what they share, and problem.go for every error that a client may see.
package api

import (
	"context"
	"iter"
	"log/slog"
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"golang.org/x/sync/singleflight"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

type publisher interface {
	Publish(context.Context, contract.Message) error
	Ready() error
}

type store interface {
	List(context.Context, records.Query) iter.Seq2[records.Record, error]
	Jobs(context.Context, []string) (map[string]string, error)
	Ping(context.Context) error
}

type deadLetters interface {
	List(ctx context.Context, limit int) ([]queue.DeadLetter, error)
	Redrive(ctx context.Context, id string) (int, error)
	Discard(ctx context.Context, id string) (int, error)
}

type api struct {
	publisher         publisher
	store             store
	dead              deadLetters
	looks             singleflight.Group // at the dead letters
	log               *slog.Logger
	rabbitMQ, mongoDB *outage
}

// How many requests of a kind are served at a time. The others wait for a moment and
// then get a 503. So they bound the memory: an event has up to 64 KiB, a batch up to
// maxBatchBytes, and a reader of records gets up to 4 MB from MongoDB at once.
const (
	maxSends   = 128
	maxBatches = 2
	maxReaders = 3
)

// New returns the router of all routes. Requests pass through the middlewares first.
func New(p publisher, s store, d deadLetters, log *slog.Logger, middlewares ...func(http.Handler) http.Handler) chi.Router {
	a := &api{publisher: p, store: s, dead: d, log: log,
		rabbitMQ: newOutage(rabbitMQ, log), mongoDB: newOutage(mongoDB, log)}
	// another site's page could make a visitor's browser submit a form here (CSRF)
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(a.handle(func(http.ResponseWriter, *http.Request) error { return errCrossOrigin }))

	r := chi.NewRouter()
	r.Use(middlewares...)
	r.Use(middleware.GetHead, sameOrigin.Handler)
	r.With(throttle(maxSends)).Post("/send", a.handle(a.send))
	r.With(throttle(maxBatches)).Post("/send/batch", a.handle(a.sendBatch))
	r.With(throttle(maxReaders)).Get("/data", a.handle(a.listData))
	r.Get("/dead-letters", a.handle(a.listDead))
	r.Delete("/dead-letters", a.handle(a.discardDead))
	r.Post("/dead-letters/redrive", a.handle(a.redriveDead))
	r.Get("/healthz", a.handle(a.healthz))
	r.Get("/readyz", a.handle(a.readyz))
	r.Get("/openapi.yaml", a.handle(a.openAPI))
	r.NotFound(a.handle(func(http.ResponseWriter, *http.Request) error { return errNoSuchPath }))
	r.MethodNotAllowed(a.handle(func(w http.ResponseWriter, req *http.Request) error {
		// a 405 names the methods that the path has (RFC 9110)
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			if r.Match(chi.NewRouteContext(), method, req.URL.Path) {
				w.Header().Add("Allow", method)
			}
		}
		if w.Header().Get("Allow") == http.MethodGet {
			w.Header().Add("Allow", http.MethodHead)
		}
		return errWrongMethod
	}))
	return r
}
