//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestTLS deploys the tutorial's system through an overlay with the component deploy/tls,
// and then without it.
func TestTLS(t *testing.T) {
	t.Parallel()
	tutorial.NeedProgram(t, "openssl")
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"all parts start with TLS", encrypted},
		{"the servers refuse plain connections", plainRefused},
		{"five events become five records and five Jobs", fiveEvents},
		{"a wrong authority is explained", wrongAuthority},
		{"a wrong host name is explained", wrongHost},
		{"without the component all is plain again", unencrypted},
	})
}

// overlay is the folder of somebody's overlay, beside the project.
func (c cluster) overlay() string { return filepath.Join(filepath.Dir(c.Dir), "mine") }

// applyOverlay writes and applies an overlay of deploy/ and more folders below it.
func (c cluster) applyOverlay(t *testing.T, resources, components string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(c.overlay(), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(c.overlay(), "kustomization.yaml"), fmt.Appendf(nil,
		"resources: [../keda-p2/deploy%s]\ncomponents: [%s]\n", resources, components), 0o600))
	c.Run(t, "kubectl", "apply", "-k", c.overlay())
}

func encrypted(t *testing.T, c cluster) {
	// twice: the second run signs with the authority of the first
	first := c.Run(t, "deploy/tls/certificates.sh")
	certificates := c.Run(t, "deploy/tls/certificates.sh")
	require.Equal(t, line(t, first, "ca.crt:"), line(t, certificates, "ca.crt:"))
	require.NoError(t, os.WriteFile(filepath.Join(c.Dir, "certificates.yaml"), []byte(certificates), 0o600))
	c.Run(t, "kubectl", "apply", "-f", "certificates.yaml", "-f", "deploy/00-secret.yaml", "-f", "deploy/00-registry-secret.yaml")

	c.applyOverlay(t, ", ../keda-p2/deploy/infrastructure", "../keda-p2/deploy/tls")
	for _, list := range []string{".volumes[*].name", ".containers[0].volumeMounts[*].name"} { // the worker keeps its own
		require.Equal(t, "tmp tls", c.Run(t, "kubectl", "get", "scaledjob/processor-job", "-o", "jsonpath={.spec.jobTargetRef.template.spec"+list+"}"))
	}
	c.rollouts(t)
	c.Run(t, "kubectl", "wait", "--for=condition=Ready", "scaledjob/processor-job", "--timeout", "3m")
}

func (c cluster) rollouts(t *testing.T) {
	t.Helper()
	for _, what := range []string{"statefulset/rabbitmq", "statefulset/mongodb", "deployment/complex-app"} {
		c.Run(t, "kubectl", "rollout", "status", what, "--timeout", "5m")
	}
	// Pods with the settings of before may get a request for as long as they are there.
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		pods, err := c.Try(t.Context(), "", "kubectl", "get", "pods", "-l", "app.kubernetes.io/name=complex-app", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}")
		require.NoError(collect, err)
		require.Empty(collect, pods)
	})
}

// line returns the first line with a text.
func line(t *testing.T, text, part string) string {
	t.Helper()
	for l := range strings.Lines(text) {
		if strings.Contains(l, part) {
			return l
		}
	}
	require.Fail(t, "no line has "+part, "%s", text)
	return ""
}

func plainRefused(t *testing.T, c cluster) {
	c.Run(t, "kubectl", "run", "plain", "--image=curlimages/curl", "--image-pull-policy=IfNotPresent", "--", "sleep", "infinity")
	c.Run(t, "kubectl", "wait", "--for=condition=Ready", "pod/plain", "--timeout", "2m")
	curl := func(args ...string) (string, error) {
		return c.Try(t.Context(), "", "kubectl", append([]string{"exec", "plain", "--", "curl", "-sS", "--max-time", "10", "--http0.9"}, args...)...)
	}
	rabbitmq := c.Run(t, "kubectl", "get", "pod", "rabbitmq-0", "-o", "jsonpath={.status.podIP}")
	for _, port := range []string{"5672", "15672"} {
		_, err := curl("--connect-timeout", "5", "http://"+rabbitmq+":"+port)
		require.ErrorContains(t, err, "onnect", port)
	}
	for _, encrypted := range []string{"rabbitmq:5671", "mongodb:27017"} {
		out, err := curl("http://" + encrypted)
		require.NotContains(t, out, "AMQP", encrypted)
		require.NotContains(t, out, "MongoDB", encrypted)
		if err == nil {
			require.NotEmpty(t, out) // a TLS alert, which HTTP 0.9 takes for an answer
		}
		_, err = curl("https://" + encrypted)
		require.ErrorContains(t, err, "certificate", encrypted)
	}
	c.Run(t, "kubectl", "delete", "pod", "plain", "--now")
}

// wrongAuthority gives every client another authority than the servers' own.
func wrongAuthority(t *testing.T, c cluster) {
	c.Run(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=another", "-keyout", "another.key", "-out", "another.crt")
	another, err := os.ReadFile(filepath.Join(c.Dir, "another.crt"))
	require.NoError(t, err)
	for _, secret := range []string{"rabbitmq-tls", "mongodb-tls"} {
		c.Run(t, "kubectl", "patch", "secret", secret, "-p", fmt.Sprintf(`{"data":{"ca.crt":%q}}`, base64.StdEncoding.EncodeToString(another)))
	}
	c.requireExplained(t, "authority", map[string]string{
		"RabbitMQ": "signed by unknown authority: RABBITMQ_CA_FILE must hold the authority that signed the server's certificate",
		"MongoDB":  "MONGODB_CA_FILE must hold the authority that signed the server's certificate",
		"KEDA":     "x509: certificate signed by unknown authority",
	})
	c.Run(t, "kubectl", "apply", "-f", "certificates.yaml")
}

// wrongHost reaches the servers under a name that is not in their certificates.
func wrongHost(t *testing.T, c cluster) {
	for _, server := range []string{"rabbitmq", "mongodb"} {
		c.Run(t, "kubectl", "expose", "service", server, "--name", "other-"+server)
	}
	c.Run(t, "kubectl", "patch", "configmap", "keda-p2-config", "-p", fmt.Sprintf(
		`{"data":{"RABBITMQ_HOST":"other-rabbitmq","MONGODB_HOST":"other-mongodb","KEDA_RABBITMQ_URL":"amqps://other-rabbitmq.%s.svc:5671/"}}`, c.namespace))
	c.requireExplained(t, "name", map[string]string{
		"RabbitMQ": "not other-rabbitmq: set RABBITMQ_HOST to a name that the server's certificate has, or issue one for this name",
		"MongoDB":  "set MONGODB_HOST to a name that the server's certificate has, or issue one for this name",
		"KEDA":     "not other-rabbitmq." + c.namespace + ".svc",
	})
}

// requireExplained starts complex-app, a Job and KEDA's scaler anew, and waits for what
// each says about the servers. The old pods of complex-app serve on meanwhile.
func (c cluster) requireExplained(t *testing.T, name string, want map[string]string) {
	t.Helper()
	// KEDA connects anew after a change of the ScaledJob
	c.Run(t, "kubectl", "patch", "scaledjob", "processor-job", "--type", "merge", "-p", fmt.Sprintf(`{"spec":{"pollingInterval":%d}}`, 1+len(name)))
	c.Run(t, "kubectl", "rollout", "restart", "deployment/complex-app")
	spec := c.Run(t, "kubectl", "get", "scaledjob", "processor-job", "-o", "jsonpath={.spec.jobTargetRef}")
	_, err := c.Try(t.Context(), fmt.Sprintf(`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"wrong-%s"},"spec":%s}`, name, spec), "kubectl", "create", "-f", "-")
	require.NoError(t, err)
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		for _, selector := range []string{"app.kubernetes.io/name=complex-app", "batch.kubernetes.io/job-name=wrong-" + name} {
			log, err := c.Try(t.Context(), "", "kubectl", "logs", "-l", selector, "--tail", "-1")
			require.NoError(collect, err)
			require.Contains(collect, log, want["RabbitMQ"], selector)
			require.Contains(collect, log, want["MongoDB"], selector)
		}
		events, err := c.Try(t.Context(), "", "kubectl", "get", "events", "--field-selector", "involvedObject.kind=ScaledJob", "-o", "jsonpath={.items[*].message}")
		require.NoError(collect, err)
		require.Contains(collect, events, want["KEDA"])
	})
	log := c.Run(t, "kubectl", "logs", "-l", "batch.kubernetes.io/job-name=wrong-"+name, "--tail", "2")
	t.Logf("the Job says\n%s", log)
	c.Run(t, "kubectl", "delete", "job", "wrong-"+name)
	c.Run(t, "kubectl", "rollout", "undo", "deployment/complex-app")
}

// unencrypted takes the component away, and one more event goes its way.
func unencrypted(t *testing.T, c cluster) {
	before := len(c.data(t, t.Context()))
	c.applyOverlay(t, ", ../keda-p2/deploy/infrastructure", "")
	c.rollouts(t)
	c.send(t, "plain")
	c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, before+1) })
}
