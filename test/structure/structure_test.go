// Package structure holds the code to its layout: who may import whom, and what may be
// deleted.
package structure_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	services = "../../services"
	module   = "keda-p2/services/"
)

// deps returns all packages that a package imports, its own module's and others'.
func deps(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", module+pkg).Output()
	require.NoError(t, err, pkg)
	return strings.Fields(string(out))
}

func TestWhoImportsWhom(t *testing.T) {
	t.Parallel()
	const otel = "go.opentelemetry.io/otel"
	for pkg, never := range map[string][]string{
		"complex-app/api":  {module + "complex-app/page", module + "complex-app/observe", module + "telemetry", "github.com/prometheus/client_golang/prometheus", otel},
		"complex-app/page": {module + "complex-app/api", module + "complex-app/observe", module + "telemetry", otel},
		"contract":         {module + "telemetry", otel},
		"contract/queue":   {module + "contract/records", module + "telemetry", otel},
		"contract/records": {module + "contract/queue", module + "telemetry", otel},
		"contract/config":  {module + "contract", otel},
		"telemetry":        {module + "contract"},
	} {
		found := deps(t, pkg)
		require.Contains(t, found, module+pkg)
		for _, p := range never {
			require.NotContains(t, found, p, "%s must not need it", pkg)
		}
	}
}

// The work and its process know nothing of traces: only these files of processor-job do.
func TestOnlyTraceAndMainKnowTelemetry(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(services + "/processor-job/*.go")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasSuffix(name, "_test.go") || name == "trace.go" || name == "main.go" || name == "settings.go" {
			continue
		}
		code, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotContains(t, string(code), "opentelemetry", name)
		require.NotContains(t, string(code), module+"telemetry", name)
	}
}

// optional is a line of main that belongs to a part that may be deleted.
var optional = regexp.MustCompile(`(?m)^.*// optional: (\S+)\n`)

// What is optional can be deleted together with its lines in main, and the rest builds.
func TestOptionalPartsCanBeDeleted(t *testing.T) {
	t.Parallel()
	for service, parts := range map[string][]string{
		"complex-app":   {"observe", "page"},
		"processor-job": {"trace.go"},
	} {
		if len(parts) > 1 {
			parts = append(parts, strings.Join(parts, " "))
		}
		for _, without := range parts {
			t.Run(service+" without "+without, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				require.NoError(t, os.CopyFS(dir, os.DirFS(services)))
				main := filepath.Join(dir, service, "main.go")
				code, err := os.ReadFile(main)
				require.NoError(t, err)
				for part := range strings.FieldsSeq(without) {
					require.NoError(t, os.RemoveAll(filepath.Join(dir, service, part)))
					code = optional.ReplaceAllFunc(code, func(line []byte) []byte {
						if bytes.HasSuffix(bytes.TrimSpace(line), []byte("// optional: "+part)) {
							return nil
						}
						return line
					})
				}
				require.NoError(t, os.WriteFile(main, code, 0o600))
				build := exec.Command("go", "build", "-trimpath", "-o", os.DevNull, ".") // as make build, for its cache
				build.Dir, build.Env = filepath.Join(dir, service), append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
				out, err := build.CombinedOutput()
				require.NoError(t, err, "%s", out)
			})
		}
	}
}
