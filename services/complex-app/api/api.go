// Package api is complex-app's HTTP interface.
package api

import (
	"context"
	"iter"
	"log/slog"
	"net/http"

	"github.com/go-chi/chi/v5"

	"keda-p2/services/complex-app/live"
	"keda-p2/services/complex-app/page"
	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

type publisher interface {
	// Send sends a message, and confirmed waits until RabbitMQ has stored it.
	Send(context.Context, contract.Message) (confirmed func() error, err error)
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
}

type api struct {
	publisher publisher
	store     store
	dead      deadLetters
	view      *live.View
	files     map[string]page.File
	log       *slog.Logger
	stopping  <-chan struct{} // closed when long answers must come to their end
}

// New returns the handler of all routes. The files are the page's. When ctx ends,
// the service is about to. Every request passes through what else is given to use.
func New(ctx context.Context, p publisher, s store, d deadLetters, v *live.View, files map[string]page.File, log *slog.Logger, use ...func(http.Handler) http.Handler) chi.Router {
	a := &api{publisher: p, store: s, dead: d, view: v, files: files, log: log, stopping: ctx.Done()}
	r := chi.NewRouter()
	r.Use(use...)
	r.Get("/", a.handle(a.index))
	r.Get("/page/{name}", a.handle(a.file))
	r.Get("/events", a.handle(a.events))
	r.Get("/status", a.handle(a.status))
	r.Get("/openapi.yaml", a.handle(a.openAPI))
	r.Get("/data", a.handle(a.data))
	r.Get("/dead-letters", a.handle(a.listDead))
	// a page of another site could have the browser of whoever opens it send a form
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(a.handle(func(http.ResponseWriter, *http.Request) error { return errCrossOrigin }))
	changing := r.With(sameOrigin.Handler)
	changing.Post("/send", a.handle(a.send))
	changing.Post("/send/batch", a.handle(a.batch))
	changing.Post("/dead-letters/redrive", a.handle(a.redrive))
	r.Get("/healthz", a.handle(a.healthz))
	r.Get("/readyz", a.handle(a.readyz))
	r.NotFound(a.handle(func(http.ResponseWriter, *http.Request) error { return errNoSuchPath }))
	r.MethodNotAllowed(a.handle(func(w http.ResponseWriter, req *http.Request) error {
		// a 405 names the methods that the path has (RFC 9110)
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if r.Match(chi.NewRouteContext(), method, req.URL.Path) {
				w.Header().Add("Allow", method)
			}
		}
		return errWrongMethod
	}))
	return r
}
