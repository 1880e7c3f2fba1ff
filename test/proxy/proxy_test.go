//go:build proxy

// Package proxy_test runs complex-app behind nginx, with deploy/proxy/nginx.conf.
package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/sandbox/freeport"
)

const patience = time.Minute

func TestNginx(t *testing.T) {
	app, proxy := free(t), free(t)
	// without its servers it answers 503 to what it takes
	start(t, []string{
		"HTTP_ADDR=" + app, "ADMIN_ADDR=", "TRUSTED_ORIGINS=http://demo.example", "ALLOWED_HOSTS=demo.example",
		"RABBITMQ_HOST=127.0.0.1", "RABBITMQ_PORT=1", "RABBITMQ_USER=a", "RABBITMQ_PASSWORD=b",
		"MONGODB_HOST=127.0.0.1", "MONGODB_PORT=1", "MONGODB_USER=a", "MONGODB_PASSWORD=b",
	}, "../../bin/complex-app")

	content, err := os.ReadFile("../../deploy/proxy/nginx.conf")
	require.NoError(t, err)
	site := strings.NewReplacer("listen 80;", "listen "+proxy+";", "127.0.0.1:8080", app).Replace(string(content))
	dir := t.TempDir()
	file := filepath.Join(dir, "nginx.conf")
	var main strings.Builder
	if os.Geteuid() == 0 {
		main.WriteString("user root;\n") // the folder is ours alone
	}
	main.WriteString("events {}\nhttp {\naccess_log off;\n")
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&main, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "daemon off; pid %s/pid; error_log stderr;\n%s%s}\n", dir, &main, site), 0o600))
	start(t, nil, "nginx", "-p", dir, "-c", file)

	url := "http://" + proxy
	require.Eventually(t, func() bool {
		response, err := http.Get(url + "/healthz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, patience, 50*time.Millisecond)

	batch := strings.Repeat(`{"name":"a"}`+"\n", 9_000)
	batch += strings.Repeat(" ", 4<<20-len(batch)-1) + "\n"
	for _, c := range []struct {
		name, method, path, origin, body string
		status                           int
	}{
		{"the page", http.MethodGet, "/", "", "", http.StatusOK},
		{"what has changed", http.MethodGet, "/events", "", "", http.StatusOK},
		{"an event from the page", http.MethodPost, "/send?name=a", "http://demo.example", "", http.StatusServiceUnavailable},
		{"an event from another site", http.MethodPost, "/send?name=a", "http://evil.example", "", http.StatusForbidden},
		{"the longest query", http.MethodPost, "/send?name=" + strings.Repeat("x", 65_000), "", "", http.StatusServiceUnavailable},
		{"the largest batch", http.MethodPost, "/send/batch", "", batch, http.StatusServiceUnavailable},
		{"a larger one", http.MethodPost, "/send/batch", "", batch + "\n", http.StatusRequestEntityTooLarge},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, url+c.path, strings.NewReader(c.body))
		require.NoError(t, err)
		r.Host = "demo.example"
		r.Header.Set("Content-Type", "application/x-ndjson")
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err, c.name)
		answer, err := io.ReadAll(response.Body)
		require.NoError(t, err, c.name)
		require.NoError(t, response.Body.Close())
		require.Equal(t, c.status, response.StatusCode, "%s: %.300s", c.name, answer)
	}
}

func free(t *testing.T) string {
	t.Helper()
	port, release, err := freeport.Reserve()
	require.NoError(t, err)
	t.Cleanup(release)
	return fmt.Sprint("127.0.0.1:", port)
}

func start(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	program := exec.CommandContext(t.Context(), name, args...)
	program.Env, program.Stderr = append(os.Environ(), env...), os.Stderr
	program.Cancel = func() error { return program.Process.Signal(syscall.SIGTERM) } // nginx ends its workers
	require.NoError(t, program.Start())
	t.Cleanup(func() { _ = program.Wait() }) // the context has ended it
}
