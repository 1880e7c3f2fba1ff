//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestNetworkPolicies applies deploy/network-policies to the tutorial's system. It
// needs a cluster whose network plugin enforces policies.
func TestNetworkPolicies(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"the application starts", application},
		{"other namespaces are kept out", strangers},
		{"five events become five records and five Jobs", fiveJobs},
		{"without the policies they are let in again", policiesRemoved},
	})
}

// policies is the folder in the test's copy.
func (c cluster) policies() string { return filepath.Join(c.Dir, "deploy", "network-policies") }

func strangers(t *testing.T, c cluster) {
	// A namespace named monitoring may be in use: the test's own takes its place.
	monitoring := c.namespace + "-monitoring"
	file := filepath.Join(c.policies(), "policies.yaml")
	manifest, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(manifest), "metadata.name: monitoring", "metadata.name: "+monitoring)), 0o600))

	targets := c.targets(t)
	names := slices.Sorted(maps.Keys(targets))
	c.startStranger(t, monitoring)
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.Equal(collect, names, c.reaches(collect, monitoring, targets), "something is not reachable even without policies")
	})

	c.Run(t, "kubectl", "apply", "-f", c.policies())
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.Equal(collect, []string{"RabbitMQ's metrics", "complex-app's metrics"}, c.reaches(collect, monitoring, targets),
			"does the network plugin enforce NetworkPolicies?")
	})
	c.startStranger(t, c.namespace+"-other")
	require.Empty(t, c.reaches(t, c.namespace+"-other", targets), "reached from another namespace")

	// a second worker goes by its label
	c.startPod(t, c.namespace, "--labels=app.kubernetes.io/name=thumbnails,app.kubernetes.io/part-of=keda-p2")
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.Equal(collect, []string{"MongoDB", "MongoDB's pod", "RabbitMQ", "complex-app's pod", "the API"}, c.reaches(collect, c.namespace, targets))
	})
	c.Run(t, "kubectl", "delete", "pod", "client", "--now")
}

// fiveJobs sends the tutorial's events from a pod that the firewall knows already. The
// Jobs start before it knows them, and none may fail for that.
func fiveJobs(t *testing.T, c cluster) {
	c.startClient(t)
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		_, err := c.curl(t.Context(), "--fail", service+"/data")
		require.NoError(collect, err)
	})
	earlier, err := c.jobs(t.Context())
	require.NoError(t, err)
	before := len(c.data(t, t.Context()))
	c.send(t, "record1", "record2", "record3", "record4", "record5")
	records := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, before+tutorial.Events) })[before:]
	for _, r := range records {
		require.Equal(t, 1, r.Attempts, r.Name)
	}
	c.requireJobs(t, jobs{succeeded: earlier.succeeded + tutorial.Events, failed: earlier.failed})
	tutorial.LogTimes(t, records)
}

// policiesRemoved also shows that nothing else had kept the stranger out.
func policiesRemoved(t *testing.T, c cluster) {
	c.Run(t, "kubectl", "delete", "-f", c.policies())
	targets := c.targets(t)
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.Len(collect, c.reaches(collect, c.namespace+"-other", targets), len(targets))
	})
}

// targets are what nobody outside the namespace may reach, as host:port.
func (c cluster) targets(t *testing.T) map[string]string {
	t.Helper()
	address := func(name string) string {
		pods := strings.Fields(c.Run(t, "kubectl", "get", "pods", "-l", "app.kubernetes.io/name="+name, "-o", "jsonpath={.items[*].status.podIP}"))
		require.NotEmpty(t, pods, name)
		return pods[0]
	}
	return map[string]string{
		"RabbitMQ":              "rabbitmq." + c.namespace + ".svc:5672",
		"RabbitMQ's management": "rabbitmq." + c.namespace + ".svc:15672",
		"RabbitMQ's metrics":    address("rabbitmq") + ":15692",
		"MongoDB":               "mongodb." + c.namespace + ".svc:27017",
		"MongoDB's pod":         address("mongodb") + ":27017",
		"the API":               "complex-app-keda-service." + c.namespace + ".svc:80/dead-letters",
		"complex-app's pod":     address("complex-app") + ":8080",
		"complex-app's metrics": address("complex-app") + ":9464",
	}
}

// startStranger starts a pod with curl in a new namespace, which goes with the test's.
func (c cluster) startStranger(t *testing.T, namespace string) {
	t.Helper()
	owner := c.Run(t, "kubectl", "get", "namespace", c.namespace, "-o", "jsonpath={.metadata.uid}")
	_, err := c.Try(t.Context(), fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q,"ownerReferences":[{"apiVersion":"v1","kind":"Namespace","name":%q,"uid":%q}]}}`,
		namespace, c.namespace, owner), "kubectl", "create", "-f", "-")
	require.NoError(t, err)
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) { // without it no pod is let in
		_, err := c.Try(t.Context(), "", "kubectl", "get", "serviceaccount", "default", "-n", namespace)
		require.NoError(collect, err)
	})
	c.startPod(t, namespace)
}

// startPod starts the pod "client" with curl.
func (c cluster) startPod(t *testing.T, namespace string, options ...string) {
	t.Helper()
	args := append([]string{"run", "client", "-n", namespace, "--image=curlimages/curl", "--image-pull-policy=IfNotPresent"}, options...)
	c.Run(t, "kubectl", append(args, "--", "sleep", "infinity")...)
	c.Run(t, "kubectl", "wait", "-n", namespace, "--for=condition=Ready", "pod/client", "--timeout", "2m")
}

// reaches names the targets to which a pod of the namespace can connect, sorted.
func (c cluster) reaches(t require.TestingT, namespace string, targets map[string]string) []string {
	var script strings.Builder
	for name, target := range targets { // all at once: a connection that is dropped takes its timeout
		fmt.Fprintf(&script, "curl -s -o /dev/null --connect-timeout 3 --max-time 4 -w \"%%{time_connect} %s\\n\" http://%s &\n", name, target)
	}
	out, err := c.Try(context.Background(), "", "kubectl", "exec", "-n", namespace, "client", "--", "sh", "-c", script.String()+"wait")
	require.NoError(t, err)
	var reached []string
	for line := range strings.Lines(out) {
		connected, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.Trim(connected, "0.") != "" {
			reached = append(reached, name)
		}
	}
	slices.Sort(reached)
	return reached
}
