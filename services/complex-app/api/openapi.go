package api

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.yaml
var description []byte

// openAPI answers with the description of all of these requests and answers:
// GET /openapi.yaml.
func (a *api) openAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml") // RFC 9512
	_, _ = w.Write(description)                        // fails only when the client is gone
	return nil
}
