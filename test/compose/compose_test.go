//go:build compose

// Package compose tests docker-compose.yml: the tutorial's five events on one
// machine.
package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

func TestTutorial(t *testing.T) {
	tutorial.NeedProgram(t, "docker")
	s := tutorial.Shell{
		Dir: tutorial.Root(t),
		Env: []string{
			// a project and a port of its own, so as not to touch a running one
			fmt.Sprintf("COMPOSE_PROJECT_NAME=keda-p2-test-%d", os.Getpid()),
			"COMPLEX_APP_PORT=0",
		},
	}
	s.Run(t, "docker", "version") // fails with Docker's own word when its engine does not run
	s.Run(t, "docker", "compose", "version")
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			logs, _ := s.Try(ctx, "", "docker", "compose", "logs", "--no-color")
			t.Log(logs)
		}
		_, err := s.Try(ctx, "", "docker", "compose", "down", "--volumes", "--rmi", "local")
		require.NoError(t, err)
	})

	began := time.Now()
	s.Run(t, "docker", "compose", "up", "--build", "-d")
	api := waitForAPI(t, s)
	t.Logf("up after %.0f s", time.Since(began).Seconds())

	accepted := make([]tutorial.Record, tutorial.Events)
	for i := range accepted {
		status := call(t, http.MethodPost, fmt.Sprintf("%s/send?name=record%[2]d&content=content%[2]d", api, i+1), &accepted[i])
		require.Equal(t, http.StatusAccepted, status)
	}
	var records []tutorial.Record
	tutorial.Eventually(t, 2*time.Minute, func(c *assert.CollectT) {
		records = nil
		require.Equal(c, http.StatusOK, call(c, http.MethodGet, api+"/data", &records))
		require.True(c, tutorial.AllDone(records, tutorial.Events), "not all are done: %+v", records)
	})
	tutorial.RequireRecords(t, accepted, records)

	// several looks at the empty queue must start nothing
	started := func() int {
		logs, err := s.Try(t.Context(), "", "docker", "compose", "logs", "--no-color", "scaler")
		assert.NoError(t, err)
		return strings.Count(logs, "job started")
	}
	require.Never(t, func() bool { return started() != tutorial.Events }, 15*tutorial.PollingInterval, time.Second,
		"the scaler did not start one Job for each event")
	s.Run(t, "docker", "compose", "stop", "scaler")
	require.Contains(t, s.Run(t, "docker", "compose", "logs", "--no-color", "scaler"),
		fmt.Sprintf("jobs=%[1]d succeeded=%[1]d failed=0", tutorial.Events))

	// what is stored outlives the containers
	s.Run(t, "docker", "compose", "down")
	s.Run(t, "docker", "compose", "up", "-d")
	api = waitForAPI(t, s)
	var kept []tutorial.Record
	require.Equal(t, http.StatusOK, call(t, http.MethodGet, api+"/data", &kept))
	require.Equal(t, records, kept)
}

// waitForAPI returns complex-app's address once it is ready.
func waitForAPI(t *testing.T, s tutorial.Shell) string {
	t.Helper()
	api := "http://" + strings.TrimSpace(s.Run(t, "docker", "compose", "port", "complex-app", "8080"))
	tutorial.Eventually(t, time.Minute, func(c *assert.CollectT) {
		require.Equal(c, http.StatusOK, call(c, http.MethodGet, api+"/readyz", nil))
	})
	return api
}

// call makes a request, decodes a successful answer into result unless that is
// nil, and returns the status.
func call(t require.TestingT, method, url string, result any) int {
	request, err := http.NewRequest(method, url, nil)
	require.NoError(t, err)
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	if result != nil && response.StatusCode < http.StatusBadRequest {
		require.NoError(t, json.NewDecoder(response.Body).Decode(result))
	}
	return response.StatusCode
}
