//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestScaling counts: a Job for each message, and with a Deployment in the
// ScaledJob's place no message lost or worked on twice.
func TestScaling(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"the application starts", application},
		{"five messages, and three bursts of five, get a Job each", oneJobEach},
		{"five messages with a Deployment, which then goes back to zero", deploymentInstead},
		{"scaling in in the middle of thirty messages", scaleIn},
	})
}

func oneJobEach(t *testing.T, c cluster) {
	for _, r := range c.measure(t, "-loads", "five,bursts") {
		require.Equal(t, r.Messages, r.Pods)
		require.Zero(t, r.Empty)
		require.Zero(t, r.Lost)
		require.Zero(t, r.Twice)
	}
}

// deploymentInstead needs KEDA all the time: without its numbers the HPA would not scale.
func deploymentInstead(t *testing.T, c cluster) {
	kedaStays.RLock()
	defer kedaStays.RUnlock()
	// else the HPA would know no number, and leave one pod to do it all
	c.Run(t, "kubectl", "wait", "--for=condition=Available", "apiservice/v1beta1.external.metrics.k8s.io", "--timeout", "1m")
	c.Run(t, "kubectl", "delete", "scaledjob", "processor-job")
	c.Run(t, "kubectl", "apply", "-f", "deploy/scaledobject/")
	c.Run(t, "kubectl", "wait", "--for=condition=Ready", "scaledobject/processor-scaledobject", "--timeout", "1m")
	// it ends when there is no pod any more
	r := c.measure(t, "-loads", "five")[0]
	require.Greater(t, r.Pods, 1, "the HPA adds pods")
	require.Zero(t, r.Lost)
	require.Zero(t, r.Twice)
	require.Equal(t, "0", c.Run(t, "kubectl", "get", "deployment", "processor", "-o", "jsonpath={.spec.replicas}"))
}

// scaleIn has the HPA count waiting messages only: as soon as the last ones are
// claimed, it stops all pods but one. It looks every 15 s.
func scaleIn(t *testing.T, c cluster) {
	kedaStays.RLock()
	defer kedaStays.RUnlock()
	r := c.measure(t, "-loads", "waves", "-variants", "over-amqp")[0]
	require.Positive(t, r.Interrupted, "no pod was told to stop while it had a message")
	require.Zero(t, r.Lost)
	require.Zero(t, r.Twice)
}

// measured is what test/measure/scaling writes of a load.
type measured struct{ Messages, Pods, Empty, Lost, Twice, Interrupted int }

func (c cluster) measure(t *testing.T, args ...string) []measured {
	t.Helper()
	results := filepath.Join(t.TempDir(), "results")
	here := c.Shell
	here.Dir = "." // go run wants to be in the module
	t.Logf("\n%s", here.Run(t, "go", append([]string{"run", "../measure/scaling", "-json", results}, args...)...))
	file, err := os.Open(results)
	require.NoError(t, err)
	defer file.Close()
	var all []measured
	for lines := json.NewDecoder(file); lines.More(); {
		var m measured
		require.NoError(t, lines.Decode(&m))
		all = append(all, m)
	}
	require.NotEmpty(t, all)
	return all
}
