package api_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/records"
)

var errAway = errors.New("10.0.0.7 is away")

func TestReadyz(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rabbitMQ, mongoDB error
		missing           []any
		detail            string
	}{
		"both are there": {},
		"no RabbitMQ":    {rabbitMQ: errAway, missing: []any{"RabbitMQ"}, detail: "waiting for RabbitMQ"},
		"no MongoDB":     {mongoDB: errAway, missing: []any{"MongoDB"}, detail: "waiting for MongoDB"},
		"neither":        {rabbitMQ: errAway, mongoDB: errAway, missing: []any{"RabbitMQ", "MongoDB"}, detail: "waiting for RabbitMQ and MongoDB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, &fakePublisher{notReady: c.rabbitMQ}, &fakeStore{ping: c.mongoDB})
			require.Equal(t, http.StatusOK, request(t, http.MethodGet, url+"/healthz", "", "").status, "it lives, whatever is missing")
			a := request(t, http.MethodGet, url+"/readyz", "", "")
			if c.missing == nil {
				require.Equal(t, http.StatusOK, a.status)
				return
			}
			members := requireProblem(t, a, http.StatusServiceUnavailable, c.detail)
			require.Equal(t, c.missing, members["missing"])
			require.NotContains(t, a.body, "10.0.0.7")
		})
	}
}

// Monitors and curl -I use HEAD.
func TestHead(t *testing.T) {
	t.Parallel()
	url := serve(t, &fakePublisher{}, &fakeStore{})
	for _, path := range []string{"/healthz", "/readyz", "/data", "/dead-letters", "/openapi.yaml"} {
		response, err := http.Head(url + path)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusOK, response.StatusCode, path)
	}
}

// A reader of a million records that asks for the head does not read them.
func TestHeadOfData(t *testing.T) {
	t.Parallel()
	s := &fakeStore{}
	response, err := http.Head(serve(t, &fakePublisher{}, s) + "/data?name=a&limit=1000")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, records.Query{Name: "a", Limit: 1, Settled: true}, s.asked)
}

func TestReadyzExclude(t *testing.T) {
	t.Parallel()
	url := serve(t, &fakePublisher{notReady: errAway}, &fakeStore{})
	require.Equal(t, http.StatusOK, request(t, http.MethodGet, url+"/readyz?exclude=RabbitMQ", "", "").status)
	requireProblem(t, request(t, http.MethodGet, url+"/readyz?exclude=MongoDB", "", ""), http.StatusServiceUnavailable, "waiting for RabbitMQ")
	requireProblem(t, request(t, http.MethodGet, url+"/readyz?exclude=", "", ""), http.StatusBadRequest, "exclude must be RabbitMQ or MongoDB")
	requireProblem(t, request(t, http.MethodGet, url+"/readyz?include=MongoDB", "", ""), http.StatusBadRequest, "unknown field")
}

func TestWrongPathsAndMethods(t *testing.T) {
	t.Parallel()
	url := serve(t, &fakePublisher{}, &fakeStore{})
	requireProblem(t, request(t, http.MethodGet, url+"/nothing", "", ""), http.StatusNotFound, "nothing at this path")
	requireProblem(t, request(t, http.MethodPost, url+"/send/", "", ""), http.StatusNotFound, "nothing at this path")

	a := request(t, http.MethodGet, url+"/send?name=a", "", "")
	requireProblem(t, a, http.StatusMethodNotAllowed, "Allow header")
	require.Equal(t, "POST", a.header.Get("Allow"))
	a = request(t, http.MethodDelete, url+"/data", "", "")
	requireProblem(t, a, http.StatusMethodNotAllowed, "Allow header")
	require.Equal(t, []string{"GET", "HEAD"}, a.header.Values("Allow"))
}
