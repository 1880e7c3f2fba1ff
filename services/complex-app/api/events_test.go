package api_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// events opens the stream and returns a function that reads the next update.
func events(t *testing.T, url string) (next func() (map[string]any, bool)) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/events", nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	return func() (map[string]any, bool) {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var update map[string]any
				require.NoError(t, json.Unmarshal([]byte(data), &update))
				return update, true
			}
		}
		return nil, false
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	p, s, d := &fakePublisher{}, &fakeStore{}, &fakeDeadLetters{}
	v := newView(p, s, d)
	url := serveView(t, p, s, d, v)
	next := events(t, url)
	first, ok := next()
	require.True(t, ok)
	require.Equal(t, true, first["whole"])

	name := "<script>\n\"'"
	body, err := json.Marshal(map[string]string{"name": name})
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, request(t, http.MethodPost, url+"/send", asJSON, string(body)).status)
	for {
		update, ok := next()
		require.True(t, ok)
		if accepted, ok := update["accepted"].([]any); ok {
			require.Equal(t, name, accepted[0].(map[string]any)["name"])
			break
		}
	}

	v.Close() // as a shutdown does
	for ok {
		_, ok = next()
	}
	requireProblem(t, request(t, http.MethodGet, url+"/events", "", ""), http.StatusServiceUnavailable, "shutting down")
}
