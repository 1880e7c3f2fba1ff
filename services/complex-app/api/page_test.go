package api_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/page"
)

func TestPage(t *testing.T) {
	t.Parallel()
	url := serve(t, &fakePublisher{}, &fakeStore{})
	a := request(t, http.MethodGet, url+"/", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "text/html; charset=utf-8", a.header.Get("Content-Type"))
	require.Contains(t, a.body, "<title>keda-p2")
	policy := a.header.Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'")
	require.NotContains(t, policy, "unsafe")
	require.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"))
	require.NotRegexp(t, regexp.MustCompile(`(?i)<style|style=|\son[a-z]+=|<script(?:[^>]*)>[^<]`), a.body, "nothing that the policy forbids")

	requireProblem(t, request(t, http.MethodGet, url+"/page/nothing.js", "", ""), http.StatusNotFound, "nothing at this path")
	requireProblem(t, request(t, http.MethodPost, url+"/", "", ""), http.StatusMethodNotAllowed, "Allow")
}

func TestEveryFileOfThePage(t *testing.T) {
	t.Parallel()
	url := serve(t, &fakePublisher{}, &fakeStore{})
	files, err := page.Files()
	require.NoError(t, err)
	address := regexp.MustCompile(`(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}`)
	for name := range files {
		// The client asks for gzip by itself and takes it off again.
		plain := request(t, http.MethodGet, url+"/page/"+name, "", "", "Accept-Encoding", "identity")
		require.Equal(t, http.StatusOK, plain.status, name)
		require.Empty(t, plain.header.Get("Content-Encoding"))
		packed := request(t, http.MethodGet, url+"/page/"+name, "", "", "Accept-Encoding", "gzip, br")
		require.Equal(t, "gzip", packed.header.Get("Content-Encoding"))
		r, err := gzip.NewReader(strings.NewReader(packed.body))
		require.NoError(t, err)
		unpacked, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, plain.body, string(unpacked), name)

		etag := plain.header.Get("ETag")
		require.Equal(t, http.StatusNotModified, request(t, http.MethodGet, url+"/page/"+name, "", "", "If-None-Match", etag).status)
		if !strings.HasPrefix(name, "echarts.") && name != "icon.svg" {
			require.NotRegexp(t, address, plain.body, "%s loads nothing from another host", name)
		}
	}
}
