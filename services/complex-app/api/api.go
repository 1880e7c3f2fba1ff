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

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// Publisher is a queue.Publisher, or one with metrics and traces around it.
type Publisher interface {
	Publish(context.Context, contract.Message) error
	Connects() uint64
}

type store interface {
	List(context.Context, records.Query) iter.Seq2[records.Record, error]
	Jobs(context.Context, []string) (map[string]string, error)
}

type deadLetters interface {
	List(ctx context.Context, limit int) ([]queue.DeadLetter, error)
	Redrive(ctx context.Context, id string) (int, error)
	Discard(ctx context.Context, id string) (int, error)
}

type api struct {
	publisher         Publisher
	store             store
	dead              deadLetters
	log               *slog.Logger
	rabbitMQ, mongoDB *outage
}

// How many requests of a kind are served at a time. The others wait for a moment and
// then get a 503. This bounds the memory, of which a pod has 96 MiB: an event has up to
// 64 KiB, a reader of records gets up to 4 MB from MongoDB at once, and two batches of
// 4 MiB at a time were measured to take the process from 22 to at most 57 MiB.
const (
	maxSends   = 128
	maxBatches = 2
	maxReaders = 3
	maxLooks   = 1 // at the dead letters: an answer of 1,000 may have 18 MB, when all is control characters
)

// New returns the router of all routes. Requests pass through the middlewares first.
// The pages of the origins may send requests too. No hosts means that all are allowed.
func New(p Publisher, s store, d deadLetters, log *slog.Logger, origins, hosts []string, middlewares ...func(http.Handler) http.Handler) chi.Router {
	a := &api{publisher: p, store: s, dead: d, log: log,
		rabbitMQ: &outage{server: "RabbitMQ", log: log, signs: []error{queue.ErrUnavailable, queue.ErrUnconfirmed}},
		mongoDB:  &outage{server: "MongoDB", log: log, signs: []error{errStore}}}
	// another site's page could make a visitor's browser submit a form here (CSRF)
	sameOrigin := http.NewCrossOriginProtection()
	for _, origin := range origins {
		_ = sameOrigin.AddTrustedOrigin(origin) // main has tried it
	}
	sameOrigin.SetDenyHandler(a.answer(func(http.ResponseWriter, *http.Request) error { return errCrossOrigin }))

	r := chi.NewRouter()
	r.Use(middlewares...)
	r.Use(inTime, middleware.GetHead, a.onlyUnder(hosts), sameOrigin.Handler)
	r.With(a.throttle(maxSends)).Post("/send", a.answer(a.handleSend))
	r.With(a.throttle(maxBatches)).Post("/send/batch", a.answer(a.handleSendBatch))
	r.With(a.throttle(maxReaders)).Get("/data", a.answer(a.handleData))
	r.With(a.throttle(maxLooks)).Get("/dead-letters", a.answer(a.handleDeadLetters))
	r.Delete("/dead-letters", a.handleRemove(deadLetters.Discard, "discarded", "discarded"))
	r.Post("/dead-letters/redrive", a.handleRemove(deadLetters.Redrive, "redriven", "sent back"))
	r.Get("/healthz", a.answer(a.handleHealthz))
	r.Get("/readyz", a.answer(a.handleReadyz))
	r.Get("/openapi.yaml", a.answer(a.handleOpenAPI))
	r.NotFound(a.answer(func(http.ResponseWriter, *http.Request) error { return errNoSuchPath }))
	r.MethodNotAllowed(a.answer(func(w http.ResponseWriter, req *http.Request) error {
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
