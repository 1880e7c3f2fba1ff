//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestRabbitMQIsAway scales RabbitMQ to nothing. complex-app must stay in its Service:
// just then clients need its 503 with an id, the records and the page.
func TestRabbitMQIsAway(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"the application starts", application},
		{"the Service has its pods during an outage", outage},
	})
}

func outage(t *testing.T, c cluster) {
	c.startClient(t)
	c.Run(t, "kubectl", "scale", "statefulset/rabbitmq", "--replicas=0")
	c.Run(t, "kubectl", "wait", "--for=delete", "pod/rabbitmq-0", "--timeout", "3m")
	// a pod that was not ready would be out of the Service after three probes, 15 s
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); {
		for _, path := range []string{"/status", "/data", "/"} {
			_, err := c.curl(t.Context(), "--fail", "--output", "/dev/null", service+path)
			require.NoError(t, err, path)
		}
		sent, err := c.curl(t.Context(), "-X", "POST", "-H", "Idempotency-Key: during-the-outage", service+"/send?name=late")
		require.NoError(t, err)
		var problem struct {
			Status int
			ID     string
		}
		require.NoError(t, json.Unmarshal([]byte(sent), &problem), sent)
		require.Equal(t, http.StatusServiceUnavailable, problem.Status, sent)
		require.Equal(t, "during-the-outage", problem.ID)
	}
	require.Equal(t, "2", c.Run(t, "kubectl", "get", "deployment", "complex-app", "-o", "jsonpath={.status.readyReplicas}"))

	c.Run(t, "kubectl", "scale", "statefulset/rabbitmq", "--replicas=1")
	c.Run(t, "kubectl", "rollout", "status", "statefulset/rabbitmq", "--timeout", "5m")
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		_, err := c.curl(t.Context(), "--fail", "-X", "POST", "-H", "Idempotency-Key: during-the-outage", service+"/send?name=late")
		require.NoError(collect, err)
	})
	records := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, 1) })
	require.Equal(t, "during-the-outage", records[0].ID)
}

// monitoringCRDs is the module that has the Prometheus operator's own definitions.
const monitoringCRDs = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// TestMonitorsAndAlertsAreApplied lets the API server check deploy/observability, with
// the Prometheus operator's definitions of the objects, which are removed again unless
// the cluster had them.
func TestMonitorsAndAlertsAreApplied(t *testing.T) {
	c := newCluster(t)
	var module struct{ Dir string }
	require.NoError(t, json.Unmarshal([]byte(tutorial.Shell{Dir: t.TempDir()}.Run(t, "go", "mod", "download", "-json", monitoringCRDs)), &module))
	for _, kind := range []string{"podmonitors", "prometheusrules"} {
		name := kind + ".monitoring.coreos.com"
		if _, err := c.Try(t.Context(), "", "kubectl", "get", "crd", name); err == nil {
			continue
		}
		c.Run(t, "kubectl", "create", "-f", filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+kind+".yaml"))
		t.Cleanup(func() { _, _ = c.Try(context.WithoutCancel(t.Context()), "", "kubectl", "delete", "crd", name) })
		c.Run(t, "kubectl", "wait", "--for=condition=Established", "crd/"+name, "--timeout", "1m")
	}
	applied := c.Run(t, "kubectl", "apply", "--validate=strict", "-k", "deploy/observability")
	require.Equal(t, 5, strings.Count(applied, " created"), applied)
	c.Run(t, "kubectl", "delete", "-k", "deploy/observability")
}
