package page

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"

	"github.com/go-chi/chi/v5"
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
