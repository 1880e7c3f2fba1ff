//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// service is complex-app's address, as the tutorial writes it.
const service = "http://complex-app-keda-service"

// cluster is a namespace of its own on the cluster of KUBECONFIG, and a copy of
// the project to type the tutorial's commands in.
type cluster struct {
	tutorial.Shell
	namespace string
}

// places bounds the namespaces at a time to what a small cluster has room for: two cores,
// and six volumes that were made by hand.
var places = make(chan struct{}, 3)

// newCluster makes both, and removes them when the test ends.
func newCluster(t *testing.T) cluster {
	t.Helper()
	places <- struct{}{}
	t.Cleanup(func() { <-places })
	for _, name := range []string{"KUBECONFIG", "REPO", "LOGIN", "PASSWORD"} {
		require.NotEmpty(t, os.Getenv(name), "set %s: this test needs KUBECONFIG, a cluster with KEDA, and REPO, LOGIN and PASSWORD, a registry that the cluster can pull from", name)
	}
	tutorial.NeedProgram(t, "docker")
	tutorial.NeedProgram(t, "kubectl")

	dir := filepath.Join(t.TempDir(), "keda-p2")
	// not the time: two of them may be made in the same millisecond
	namespace := "keda-p2-e2e-" + strings.ToLower(rand.Text()[:10])
	c := cluster{
		Shell:     tutorial.Shell{Dir: dir, Env: []string{"KUBECONFIG=" + filepath.Join(dir, "kubeconfig"), "NAMESPACE=" + namespace}},
		namespace: namespace,
	}
	copyProject(t, dir)

	// The tutorial's commands name no namespace, so the current one must be ours:
	// in a copy of the configuration, not in the user's.
	config := tutorial.Shell{Dir: dir}.Run(t, "kubectl", "config", "view", "--raw", "--minify", "--flatten")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(config), 0o600))
	c.Run(t, "kubectl", "config", "set-context", "--current", "--namespace", c.namespace)
	_, err := c.Try(t.Context(), "", "kubectl", "get", "crd", "scaledjobs.keda.sh")
	require.NoError(t, err, "install KEDA first")

	c.Run(t, "kubectl", "create", "namespace", c.namespace)
	t.Cleanup(func() { c.remove(context.WithoutCancel(t.Context()), t) })
	return c
}

// copyProject copies what the tutorial uses, so that build-images.sh changes no
// file of the working tree, and does what the tutorial tells the reader to edit.
func copyProject(t *testing.T, dir string) {
	t.Helper()
	copyTree(t, dir)
	for _, name := range []string{"REPO", "LOGIN", "PASSWORD"} {
		edit(t, filepath.Join(dir, "build-images.sh"), "\n"+name+"='<"+name+">'", "\n"+name+"="+quote(os.Getenv(name)))
	}
}

// copyScript copies one of the project's scripts, which the tutorial does not use, to the
// same place in another tree.
func copyScript(t *testing.T, tree, path string) {
	t.Helper()
	script, err := os.ReadFile(filepath.Join(tutorial.Root(t), path))
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(tree, filepath.Dir(path)), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(tree, path), script, 0o700))
}

// numbered returns n names.
func numbered(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint(prefix, i))
	}
	return names
}

// edit replaces what occurs once in a file.
func edit(t *testing.T, file, from, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), from), "%q in %s", from, file)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), from, to, 1)), 0o600))
}

// quote quotes a text for the shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// remove deletes the namespace. A failed test first tells what stood in it.
func (c cluster) remove(ctx context.Context, t *testing.T) {
	if t.Failed() {
		for _, args := range [][]string{
			{"get", "all,scaledjobs,scaledobjects,pvc", "-o", "wide"},
			{"get", "events", "--sort-by", ".lastTimestamp"},
			{"logs", "-l", "app.kubernetes.io/name=complex-app", "--prefix", "--tail", "30"},
			{"logs", "-l", "batch.kubernetes.io/job-name", "--prefix", "--tail", "30"},
		} {
			out, err := c.Try(ctx, "", "kubectl", args...)
			t.Logf("kubectl %s\n%s%v", strings.Join(args, " "), out, err)
		}
	}
	volumes := c.volumesToRetain(ctx, t)
	if len(volumes) > 0 {
		c.empty(ctx, t)
	}
	// Pods end at once: some would wait for a quorum that is gone, or do not listen to SIGTERM.
	for _, args := range [][]string{
		{"delete", "namespace", c.namespace, "--wait=false"},
		{"delete", "pods", "--all", "--now", "--wait=false"},
		{"wait", "--for=delete", "namespace/" + c.namespace, "--timeout", "3m"},
	} {
		_, err := c.Try(ctx, "", "kubectl", args...)
		assert.NoError(t, err)
	}
	for _, volume := range volumes {
		_, err := c.Try(ctx, "", "kubectl", "patch", "pv", volume, "--type", "merge", "-p", `{"spec":{"claimRef":null}}`)
		assert.NoError(t, err)
	}
}

// volumesToRetain names our volumes that the cluster keeps when their claims are
// deleted. Nobody would ever use them again, and a cluster whose volumes were
// made by hand runs out of them: so they are emptied and given back.
func (c cluster) volumesToRetain(ctx context.Context, t *testing.T) []string {
	var volumes struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct {
				ClaimRef                      struct{ Namespace string }
				PersistentVolumeReclaimPolicy string
			}
		}
	}
	out, err := c.Try(ctx, "", "kubectl", "get", "pv", "-o", "json")
	if err != nil {
		t.Logf("cannot see whether volumes stay behind: %v", err)
		return nil
	}
	assert.NoError(t, json.Unmarshal([]byte(out), &volumes))
	var names []string
	for _, v := range volumes.Items {
		if v.Spec.ClaimRef.Namespace == c.namespace && v.Spec.PersistentVolumeReclaimPolicy == "Retain" {
			names = append(names, v.Metadata.Name)
		}
	}
	return names
}

// empty deletes the servers, and the data in their claims with the servers' user id.
func (c cluster) empty(ctx context.Context, t *testing.T) {
	try := func(stdin string, args ...string) string {
		out, err := c.Try(ctx, stdin, "kubectl", args...)
		assert.NoError(t, err)
		return out
	}
	users := append(strings.Fields(try("", "get", "statefulsets", "-o", "jsonpath={.items[*].spec.template.spec.securityContext.runAsUser}")), "999")
	try("", "delete", "statefulsets", "--all", "--cascade=orphan")
	try("", "delete", "pods", "-l", "app.kubernetes.io/name in (rabbitmq,mongodb)", "--now")
	var volumes, mounts []string
	for i, claim := range strings.Fields(try("", "get", "pvc", "-o", "jsonpath={.items[*].metadata.name}")) {
		volumes = append(volumes, fmt.Sprintf(`{"name":"claim%d","persistentVolumeClaim":{"claimName":%q}}`, i, claim))
		mounts = append(mounts, fmt.Sprintf(`{"name":"claim%d","mountPath":"/claims/%d"}`, i, i))
	}
	try(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"empty"},"spec":{"restartPolicy":"Never","securityContext":{"runAsUser":%[1]s,"fsGroup":%[1]s},
		"containers":[{"name":"empty","image":"curlimages/curl","imagePullPolicy":"IfNotPresent","command":["find","/claims","-mindepth","2","-delete"],"volumeMounts":[%[2]s]}],
		"volumes":[%[3]s]}}`, users[0], strings.Join(mounts, ","), strings.Join(volumes, ",")), "create", "-f", "-")
	try("", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/empty", "--timeout", "2m")
}

// waitForApplication waits until complex-app serves and KEDA knows the ScaledJob.
func (c cluster) waitForApplication(t *testing.T) {
	t.Helper()
	c.Run(t, "kubectl", "rollout", "status", "deployment/complex-app", "--timeout", "2m")
	c.Run(t, "kubectl", "wait", "--for=condition=Ready", "scaledjob/processor-job", "--timeout", "1m")
}

// typed runs lines in a curl pod's shell, as the tutorial has the reader type
// them there, and returns what they print. The shell has no terminal, hence -i
// instead of -it.
func (c cluster) typed(t *testing.T, lines string) string {
	t.Helper()
	out, err := c.Try(t.Context(), lines, "kubectl", "run", "-i", "--rm", "--quiet", "curl-pod",
		"--image=curlimages/curl", "--image-pull-policy=IfNotPresent", "--", "/bin/sh")
	require.NoError(t, err)
	return out
}

// curl runs curl in a pod that stays: its standard output.
func (c cluster) curl(ctx context.Context, args ...string) (string, error) {
	return c.Try(ctx, "", "kubectl", append([]string{"exec", "client", "--", "curl", "--silent", "--show-error", "--max-time", "20"}, args...)...)
}

// startClient starts the pod that curl runs in.
func (c cluster) startClient(t *testing.T) {
	t.Helper()
	c.Run(t, "kubectl", "run", "client", "--image=curlimages/curl", "--image-pull-policy=IfNotPresent", "--", "sleep", "infinity")
	c.Run(t, "kubectl", "wait", "--for=condition=Ready", "pod/client", "--timeout", "2m")
}

// send sends an event for each name.
func (c cluster) send(t *testing.T, names ...string) {
	t.Helper()
	args := []string{"--fail-early", "--fail", "-X", "POST"}
	for _, name := range names {
		args = append(args, service+"/send?name="+name)
	}
	_, err := c.curl(t.Context(), args...)
	require.NoError(t, err)
}

// data is the answer to GET /data.
func (c cluster) data(t require.TestingT, ctx context.Context) []tutorial.Record {
	out, err := c.curl(ctx, "--fail", service+"/data")
	require.NoError(t, err)
	var records []tutorial.Record
	require.NoError(t, json.Unmarshal([]byte(out), &records), "%s", out)
	return records
}

// messages counts those in the queue, claimed or not.
func (c cluster) messages(t require.TestingT, ctx context.Context) int {
	out, err := c.Try(ctx, "", "kubectl", "exec", "rabbitmq-0", "--", "rabbitmqctl", "-q", "list_queues", "name", "messages")
	require.NoError(t, err)
	found := regexp.MustCompile(`(?m)^task_queue\s+(\d+)$`).FindStringSubmatch(out)
	require.NotNil(t, found, "%s", out)
	n, err := strconv.Atoi(found[1])
	require.NoError(t, err)
	return n
}

// waitForRecords waits until there are n records that fulfil the condition.
func (c cluster) waitForRecords(t *testing.T, limit time.Duration, condition func([]tutorial.Record) bool) []tutorial.Record {
	t.Helper()
	var records []tutorial.Record
	tutorial.Eventually(t, limit, func(collect *assert.CollectT) {
		records = c.data(collect, t.Context())
		require.True(collect, condition(records), "records: %+v", records)
	})
	return records
}
