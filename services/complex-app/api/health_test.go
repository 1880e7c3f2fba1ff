package api_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/records"
)

var errAway = errors.New("10.0.0.7 is away")

// Not ready before RabbitMQ has been reached, and ready ever after, also when that was
// between two probes: in an outage the pods must keep their traffic.
func TestReadyz(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	url := serve(t, p, &fakeStore{away: errAway})
	get := func(path string) answer { return request(t, http.MethodGet, url+path, "", "") }
	require.Equal(t, http.StatusOK, get("/healthz").status, "it lives, whatever is missing")
	a := get("/readyz")
	requireProblem(t, a, http.StatusServiceUnavailable, "waiting for RabbitMQ")
	require.NotContains(t, a.body, "10.0.0.7")
	p.connects.Add(1)
	require.Equal(t, http.StatusOK, get("/readyz").status)
}

// Monitors and curl -I use HEAD.
func TestHead(t *testing.T) {
	t.Parallel()
	p := &fakePublisher{}
	p.connects.Add(1)
	url := serve(t, p, &fakeStore{})
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
