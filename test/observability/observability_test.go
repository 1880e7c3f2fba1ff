//go:build observability

// Package observability_test shows the alerts and the dashboard to a real
// Prometheus, which scrapes the running sandbox, and its traces to a receiver of
// OpenTelemetry's protocol. What only a cluster's exporters know comes from
// testdata/cluster.prom.
package observability_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const folder = "../../deploy/observability/"

// rules writes the PrometheusRule's groups to a rule file.
func rules(t *testing.T, dir string) {
	t.Helper()
	content, err := os.ReadFile(folder + "alerts.yaml")
	require.NoError(t, err)
	var rule struct{ Spec any }
	require.NoError(t, yaml.UnmarshalStrict(content, &struct {
		APIVersion, Kind, Metadata any
		Spec                       *any
	}{Spec: &rule.Spec}))
	content, err = yaml.Marshal(rule.Spec)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rules.yaml"), content, 0o600))
}

func promtool(t *testing.T, dir, input string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(input)
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "promtool %s: %s", strings.Join(args, " "), output)
}

func TestAlertRules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rules(t, dir)
	tests, err := os.ReadFile("alerts_test.yaml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "alerts_test.yaml"), tests, 0o600))
	promtool(t, dir, "", "check", "rules", "rules.yaml")
	promtool(t, dir, "", "test", "rules", "alerts_test.yaml")

	// every alert has its lines in the runbook
	content, err := os.ReadFile(filepath.Join(dir, "rules.yaml"))
	require.NoError(t, err)
	runbook, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllSubmatch(content, -1)
	links := regexp.MustCompile(`docs/operations\.md#([\w-]+)`).FindAllSubmatch(content, -1)
	require.Len(t, links, len(alerts))
	for _, link := range links {
		heading := strings.ReplaceAll(string(link[1]), "-", " ")
		require.Contains(t, strings.ToLower(string(runbook)), "\n### "+heading+"\n")
	}
	for _, alert := range alerts {
		require.Contains(t, string(tests), "alertname: "+string(alert[1])+"\n        exp_alerts", "%s is tested to fire", alert[1])
	}
}

// panel is a part of a Grafana dashboard.
type panel struct {
	Type, Title string
	Targets     []struct{ Expr string }
}

func dashboard(t *testing.T) []panel {
	t.Helper()
	content, err := os.ReadFile(folder + "dashboard.json")
	require.NoError(t, err)
	var d struct{ Panels []panel }
	require.NoError(t, json.Unmarshal(content, &d))
	return d.Panels
}

func TestTheDashboardsRows(t *testing.T) {
	t.Parallel()
	var rows []string
	for _, p := range dashboard(t) {
		if p.Type == "row" {
			rows = append(rows, p.Title)
		} else {
			require.NotEmpty(t, p.Targets, p.Title)
		}
	}
	require.Equal(t, []string{"Traffic", "Queue", "Jobs", "Waiting time", "Errors"}, rows)
}
