package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/api"
)

// load reads the description once for all tests.
var load = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
		lines := []any{}
		decoder := json.NewDecoder(body)
		for {
			var line any
			if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
				return lines, nil
			} else if err != nil {
				return nil, err
			}
			lines = append(lines, line)
		}
	})
	return legacy.NewRouter(doc) // which validates it
})

func describedRoutes(t *testing.T) routers.Router {
	t.Helper()
	router, err := load()
	require.NoError(t, err)
	return router
}

// requireDescribed holds an answer to the description, and its request too when
// it was not refused. Every test that makes a request does this.
func requireDescribed(t *testing.T, r *http.Request, body string, a answer) {
	t.Helper()
	r.URL, r.Body = &url.URL{Path: r.URL.Path, RawQuery: r.URL.RawQuery}, io.NopCloser(strings.NewReader(body))
	route, parameters, err := describedRoutes(t).FindRoute(r)
	if err != nil || route.Path+"/" == r.URL.Path { // the router passes over a slash at the end
		require.Contains(t, []int{http.StatusNotFound, http.StatusMethodNotAllowed}, a.status, "it is not described, and is there")
		return
	}
	input := &openapi3filter.RequestValidationInput{Request: r, PathParams: parameters, QueryParams: r.URL.Query(), Route: route}
	if a.status < http.StatusBadRequest {
		require.NoError(t, openapi3filter.ValidateRequest(t.Context(), input), "this request is not described, and was taken")
	}
	require.NoError(t, openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: a.status, Header: a.header, Body: io.NopCloser(bytes.NewBufferString(a.body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}))
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	a := request(t, http.MethodGet, serve(t, &fakePublisher{}, &fakeStore{})+"/openapi.yaml", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "application/yaml", a.header.Get("Content-Type"))
	require.Contains(t, a.body, "openapi: 3.1")
}

func TestEveryRouteIsDescribed(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))
	var described, served []string
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	routes := api.New(nil, nil, nil, slog.New(slog.DiscardHandler), nil, nil)
	require.NoError(t, chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		served = append(served, method+" "+route)
		return nil
	}))
	require.Subset(t, described, served)
	for _, path := range described {
		if !slices.Contains(served, path) { // the page adds its own to the router
			require.Contains(t, []string{"GET /", "GET /page/{name}", "GET /events", "GET /status"}, path)
		}
	}
}

// A test that could not fail would hold nobody to anything.
func TestTheDescriptionIsStrict(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"another type":      `[{"id":1,"name":"a","content":"","status":"done","job":"","attempts":1,"storedAt":"2026-11-01T12:00:00Z"}]`,
		"another status":    `[{"id":"1","name":"a","content":"","status":"lost","job":"","attempts":1,"storedAt":"2026-11-01T12:00:00Z"}]`,
		"a field too many":  `[{"id":"1","name":"a","content":"","status":"done","job":"","attempts":1,"storedAt":"2026-11-01T12:00:00Z","size":1}]`,
		"a field too few":   `[{"id":"1","content":"","status":"done","job":"","attempts":1,"storedAt":"2026-11-01T12:00:00Z"}]`,
		"not an array":      `{}`,
		"not a time":        `[{"id":"1","name":"a","content":"","status":"done","job":"","attempts":1,"storedAt":"yesterday"}]`,
		"no JSON whatever":  `records`,
		"null for an array": `null`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/data", nil)
			require.NoError(t, err)
			route, _, err := describedRoutes(t).FindRoute(r)
			require.NoError(t, err)
			require.Error(t, openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
				RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, Route: route},
				Status:                 http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
			}))
		})
	}
}
