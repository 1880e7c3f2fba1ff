package api

import (
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	"keda-p2/services/complex-app/page"
)

// pagePolicy lets the page load its own files and talk to its own host, and do
// nothing else: no script and no style inside the HTML, no HTML made from a
// string (where the browser knows trusted types), no frame around it.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types default"

// index answers with the page: GET /.
func (a *api) index(w http.ResponseWriter, r *http.Request) error {
	return serveFile(w, r, a.files["index.html"])
}

// file answers with one of the page's files: GET /page/….
func (a *api) file(w http.ResponseWriter, r *http.Request) error {
	file, ok := a.files[chi.URLParam(r, "name")]
	if !ok {
		return errNoSuchPath
	}
	return serveFile(w, r, file)
}

func serveFile(w http.ResponseWriter, r *http.Request, file page.File) error {
	h := w.Header()
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache") // ask each time whether it is still the same
	h.Set("Vary", "Accept-Encoding")
	h.Set("ETag", file.ETag)
	if r.Header.Get("If-None-Match") == file.ETag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", file.Type)
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		_ = file.Plain(w) // fails only when the client is gone
		return nil
	}
	h.Set("Content-Encoding", "gzip")
	_, _ = w.Write(file.Gzip) // fails only when the client is gone
	return nil
}
