package api

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.yaml
var description []byte

// handleOpenAPI answers with the description of all of these requests and answers:
// GET /openapi.yaml.
func (a *api) handleOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	write(w, http.StatusOK, "application/yaml", description) // RFC 9512
	return nil
}
