// Package page is complex-app's page: GET / and its files, GET /events with what has
// changed, GET /status with the numbers. All of it is in this folder, and only main
// imports it. To do without a page, delete the folder and main's lines that are marked
// "optional: page".
//
// Run polls the servers once a second and keeps what it finds in the state. The
// handlers answer from the state alone, so a hundred open pages cost no more queries
// than none:
//
//	RabbitMQ, MongoDB  <--  Run (view.go)  -->  state (state.go)  -->  handlers (here)
package page

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/klauspost/compress/gzhttp"
)

// assets is everything that the page loads: nothing comes from another host, and there
// is no build step. `make chart` has built the chart library among them.
//
//go:embed assets
var assets embed.FS

// policy lets the page load its own files and talk to its own host, and do nothing
// else: no script and no style inside the HTML, no HTML made from a string (where the
// browser knows trusted types), no frame around it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types default"

// Page is the page of one complex-app.
type Page struct {
	publisher publisher
	counter   counter
	store     store
	dead      deadLetters
	log       *slog.Logger
	etags     map[string]string // of the files, by name
	state     *state
}

// New returns a page that knows nothing until Run has looked.
func New(p publisher, c counter, s store, d deadLetters, log *slog.Logger) *Page {
	return &Page{publisher: p, counter: c, store: s, dead: d, log: log, etags: newETags(), state: newState()}
}

// Mount adds the page's routes.
func (p *Page) Mount(r chi.Router) {
	file := gzhttp.GzipHandler(http.HandlerFunc(p.handleFile))
	r = r.With(middleware.ThrottleWithOpts(middleware.ThrottleOpts{ // an answer may have a megabyte, and a slow reader
		Limit: maxAnswers, BacklogLimit: backlog, BacklogTimeout: backlogTimeout, StatusCode: http.StatusServiceUnavailable,
		RetryAfterFn: func(bool) time.Duration { return 2 * time.Second },
	}))
	r.Get("/", file)
	r.Get("/page/{name}", file)
	r.Get("/events", p.handleEvents)
	r.Get("/status", p.handleStatus)
}

// handleEvents answers with what has changed since the given cursors: GET
// /events?after=…. A page asks again and again. No connection is held open, because a
// browser has only six of them to a host, for all of its tabs together.
func (p *Page) handleEvents(w http.ResponseWriter, r *http.Request) {
	setJSON(w)
	// The clock is no part of the changes: all pages share those for a moment.
	_, _ = fmt.Fprintf(w, `{"at":%d,"changes":`, time.Now().UnixMilli())
	_, _ = w.Write(p.state.changes(r.URL.Query()["after"])) // not through fmt, which would copy it
	_, _ = fmt.Fprint(w, "}")
}

// handleStatus answers with how things were at the last poll: GET /status. It is 200
// also when RabbitMQ or MongoDB is down, and says so.
func (p *Page) handleStatus(w http.ResponseWriter, _ *http.Request) {
	setJSON(w)
	_ = json.NewEncoder(w).Encode(p.state.current())
}

func setJSON(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
}

// newETags returns a tag of each file's content. The tags are weak because a file has
// the same one whether it is sent compressed or not.
func newETags() map[string]string {
	etags := map[string]string{}
	entries, _ := assets.ReadDir("assets") // what is embedded can be read
	for _, entry := range entries {
		content, _ := assets.ReadFile("assets/" + entry.Name())
		etags[entry.Name()] = fmt.Sprintf(`W/"%x"`, sha256.Sum256(content))
	}
	return etags
}

// handleFile answers with a file: GET /page/…, or the page itself: GET /.
func (p *Page) handleFile(w http.ResponseWriter, r *http.Request) {
	name := cmp.Or(chi.URLParam(r, "name"), "index.html")
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache") // ask each time whether it is still the same
	h.Set("ETag", p.etags[name])
	http.ServeFileFS(w, r, assets, "assets/"+name) // 404 when there is none
}
