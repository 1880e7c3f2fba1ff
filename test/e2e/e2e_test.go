//go:build e2e

// Package e2e is the tutorial as a test, on a real cluster: its commands to the
// letter, what a reader sees after each, and then what may go wrong.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// version is the tag of this test's images: not the tutorial's 1.0, which a
// running system may use.
const version = "e2e"

func TestTutorial(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"the application starts", application},
		{"five events become five records and five Jobs", fiveEvents},
		{"bad input is refused", badInput},
		{"the article's line without quotes works", unquoted},
		{"an event survives the loss of its pod", podLost},
		{"the article's own ScaledJob works as printed", articleScaledJob},
		{"a drain ends on a single node, and leaves a replica where there are several", drained},
		{"no request fails while complex-app is restarted", rollingRestart},
	})
}

// step is a part of a test that needs the steps before it.
type step struct {
	name string
	run  func(*testing.T, cluster)
}

// inOrder runs the steps in a namespace, up to the first that fails.
func inOrder(t *testing.T, steps []step) {
	c := newCluster(t)
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, c) }) {
			return
		}
	}
}

func images(t *testing.T, c cluster) {
	build := c.Shell
	build.Env = append(slices.Clone(build.Env), "REPO=", "LOGIN=", "PASSWORD=", "VERSION="+version)
	t.Log(lastLines(build.Run(t, "./build-images.sh"), 4))

	for _, service := range []string{"complex-app", "processor-job"} {
		manifest, err := os.ReadFile(filepath.Join(c.Dir, "deploy", service+".yaml"))
		require.NoError(t, err)
		image := regexp.MustCompile(`image: (\S+/` + service + `:` + version + `)@sha256:[0-9a-f]{64}\s`).FindSubmatch(manifest)
		require.NotNil(t, image, "no pushed reference in\n%s", manifest)
		bytes, err := strconv.Atoi(strings.TrimSpace(c.Run(t, "docker", "image", "inspect", "--format", "{{.Size}}", string(image[1]))))
		require.NoError(t, err)
		t.Logf("%s has %.1f MB", service, float64(bytes)/1e6)
		require.Less(t, bytes, 25_000_000)
	}
	secret, err := os.Stat(filepath.Join(c.Dir, "deploy", "00-registry-secret.yaml"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), secret.Mode().Perm(), "others can read the registry's password")
}

func infrastructure(t *testing.T, c cluster) {
	c.Run(t, "kubectl", "apply", "-f", "deploy/00-secret.yaml", "-f", "deploy/infrastructure/")
	for _, server := range []string{"statefulset/rabbitmq", "statefulset/mongodb"} {
		c.Run(t, "kubectl", "rollout", "status", server, "--timeout", "5m")
	}
}

func application(t *testing.T, c cluster) {
	applied := c.Run(t, "kubectl", "apply", "-f", "deploy/")
	require.Contains(t, applied, "secret/cloud-registry-secret created")
	for _, needed := range []string{"secret/", "configmap/"} {
		require.Less(t, strings.LastIndex(applied, needed), strings.Index(applied, "deployment.apps/"), "pods were applied before a %s that they need:\n%s", needed, applied)
	}
	c.waitForApplication(t)
	require.Contains(t, c.Run(t, "kubectl", "exec", "deployment/complex-app", "--", "/service", "--version"), version)

	before := c.Run(t, "kubectl", "get", "deployments,scaledjobs", "-o", "jsonpath={.items[*].metadata.generation}")
	c.Run(t, "kubectl", "apply", "-f", "deploy/")
	require.Equal(t, before, c.Run(t, "kubectl", "get", "deployments,scaledjobs", "-o", "jsonpath={.items[*].metadata.generation}"), "applying a second time changed something")
}

func fiveEvents(t *testing.T, c cluster) {
	answers := json.NewDecoder(strings.NewReader(c.typed(t, `
curl -X POST "http://complex-app-keda-service/send?name=record1&content=content1"
curl -X POST "http://complex-app-keda-service/send?name=record2&content=content2"
curl -X POST "http://complex-app-keda-service/send?name=record3&content=content3"
curl -X POST "http://complex-app-keda-service/send?name=record4&content=content4"
curl -X POST "http://complex-app-keda-service/send?name=record5&content=content5"
exit
`)))
	accepted := make([]tutorial.Record, tutorial.Events)
	for i := range accepted {
		require.NoError(t, answers.Decode(&accepted[i]))
	}
	c.startClient(t)
	records := c.waitForRecords(t, 3*time.Minute, func(r []tutorial.Record) bool { return tutorial.AllDone(r, tutorial.Events) })
	tutorial.RequireRecords(t, accepted, records)

	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		out, err := c.Try(t.Context(), "", "kubectl", "get", "jobs", "-o",
			`jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Complete")].status}{"\n"}{end}`)
		require.NoError(collect, err)
		jobs := strings.Fields(out)
		require.Len(collect, jobs, tutorial.Events)
		for _, job := range jobs {
			require.Regexp(collect, "^processor-job-.*=True$", job)
		}
	})
	// KEDA looks at the empty queue several times, and must start nothing
	require.Never(t, func() bool {
		out, err := c.Try(t.Context(), "", "kubectl", "get", "jobs", "-o", "name")
		return err == nil && len(strings.Fields(out)) != tutorial.Events
	}, 15*tutorial.PollingInterval, time.Second, "there was a sixth Job")
	t.Logf("kubectl get jobs\n%s", c.Run(t, "kubectl", "get", "jobs"))

	var workers []string
	for _, r := range records {
		workers = append(workers, r.Job)
	}
	pods := strings.Fields(c.Run(t, "kubectl", "get", "pods", "-l", "app.kubernetes.io/name=processor-job", "-o", "jsonpath={.items[*].metadata.name}"))
	require.ElementsMatch(t, pods, workers, "a record's job is the name of the pod that worked on it")

	requireRestricted(t, c)
}

// requireRestricted checks that every pod of ours fulfils the Pod Security level
// "restricted". A namespace may not really enforce it here, because the
// tutorial's curl pod does not fulfil it.
func requireRestricted(t *testing.T, c cluster) {
	t.Helper()
	out, err := c.Try(t.Context(), "", "sh", "-c",
		"kubectl label --dry-run=server --overwrite namespace "+c.namespace+" pod-security.kubernetes.io/enforce=restricted 2>&1")
	require.NoError(t, err)
	for line := range strings.Lines(out) {
		// one summary line, then one line for the pods of each kind of violation
		if strings.HasPrefix(line, "Warning: ") && !strings.HasPrefix(line, "Warning: existing pods in namespace") {
			require.True(t, strings.HasPrefix(line, "Warning: client:"), "not restricted: %s", line)
		}
	}
	require.Contains(t, out, "Warning: client:", "the cluster does not check Pod Security levels")
}

func badInput(t *testing.T, c cluster) {
	for _, test := range []struct {
		name   string
		status int
		args   []string
	}{
		{"no name", 400, []string{"-X", "POST", service + "/send?content=content1"}},
		{"an unknown field", 400, []string{"-X", "POST", service + "/send?name=record1&colour=red"}},
		{"a body that is not JSON", 400, []string{"-H", "Content-Type: application/json", "-d", "{name: record1}", service + "/send"}},
		{"an unknown field in JSON", 400, []string{"--json", `{"name":"record1","colour":"red"}`, service + "/send"}},
		{"invalid UTF-8", 400, []string{"-X", "POST", service + "/send?name=%ff"}},
		{"GET /send", 405, []string{service + "/send?name=record1"}},
		{"DELETE /data", 405, []string{"-X", "DELETE", service + "/data"}},
		{"an unknown path", 404, []string{service + "/nowhere"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := c.curl(t.Context(), append([]string{"-w", "\n%{http_code} %{content_type}"}, test.args...)...)
			require.NoError(t, err)
			body, meta, _ := strings.Cut(strings.TrimSpace(out), "\n")
			require.Equal(t, fmt.Sprintf("%d application/problem+json", test.status), strings.TrimSpace(meta))
			var problem struct {
				Title, Detail string
				Status        int
			}
			require.NoError(t, json.Unmarshal([]byte(body), &problem))
			require.Equal(t, test.status, problem.Status)
			require.NotEmpty(t, problem.Title)
			require.NotEmpty(t, problem.Detail)
		})
	}
}

// unquoted sends what the shell leaves of the article's line: it cuts the
// address at the "&", so there is a name and no content.
func unquoted(t *testing.T, c cluster) {
	c.typed(t, `
curl -X POST http://complex-app-keda-service/send?name=record6&content=content6
wait
exit
`)
	records := c.waitForRecords(t, 2*time.Minute, func(r []tutorial.Record) bool { return tutorial.AllDone(r, tutorial.Events+1) })
	last := records[len(records)-1]
	require.Equal(t, "record6", last.Name)
	require.Empty(t, last.Content)
}

// podLost deletes a working pod, as the drain of a node does, right after the
// ScaledJob was changed, which must not disturb running Jobs either.
func podLost(t *testing.T, c cluster) {
	c.send(t, "lost", "kept")
	records := c.waitForRecords(t, time.Minute, func(r []tutorial.Record) bool {
		return named(r, "lost").Job != "" && named(r, "kept").Job != ""
	})
	lost, kept := named(records, "lost"), named(records, "kept")

	c.Run(t, "kubectl", "patch", "scaledjob", "processor-job", "--type", "merge", "-p",
		`{"spec":{"jobTargetRef":{"template":{"metadata":{"annotations":{"changed":"true"}}}}}}`)
	c.Run(t, "kubectl", "delete", "pod", lost.Job)
	records = c.waitForRecords(t, 2*time.Minute, func(r []tutorial.Record) bool { return tutorial.AllDone(r, tutorial.Events+3) })
	lostThen, keptThen := named(records, "lost"), named(records, "kept")
	require.Equal(t, 1, lostThen.Attempts, "a pod that is told to stop costs its message no attempt")
	require.NotEqual(t, lost.Job, lostThen.Job)
	require.Equal(t, 1, keptThen.Attempts)
	require.Equal(t, kept.Job, keptThen.Job)
	tutorial.LogTimes(t, []tutorial.Record{lostThen, keptThen})
}

// articleScaledJob puts the manifest that the article prints in the place of ours:
// another name, literal logins, the default strategy, no probe, no limits, and service
// links, which set RABBITMQ_PORT=tcp://… in its pods. Then it sends the article's five
// events, without quotes as they are printed there.
func articleScaledJob(t *testing.T, c cluster) {
	deployed, err := os.ReadFile(c.scaledJob())
	require.NoError(t, err)
	image := regexp.MustCompile(`image: (\S+)`).FindSubmatch(deployed)
	require.NotNil(t, image)
	printed, err := os.ReadFile(filepath.Join("testdata", "article.yaml"))
	require.NoError(t, err)
	manifest := filepath.Join(c.Dir, "article.yaml")
	require.NoError(t, os.WriteFile(manifest, printed, 0o600))
	edit(t, manifest, "<REPO>/processor-job:1.0", string(image[1]))
	edit(t, manifest, "rabbitmq.default.svc", "rabbitmq."+c.namespace+".svc")

	c.Run(t, "kubectl", "delete", "scaledjob", "processor-job")
	c.Run(t, "kubectl", "apply", "-f", manifest)
	c.Run(t, "kubectl", "wait", "--for=condition=Ready", "scaledjob/processor-scaled-job", "--timeout", "1m")
	earlier := len(c.data(t, t.Context()))
	c.typed(t, `
curl -X POST http://complex-app-keda-service/send?name=record1&content=content1
curl -X POST http://complex-app-keda-service/send?name=record2&content=content2
curl -X POST http://complex-app-keda-service/send?name=record3&content=content3
curl -X POST http://complex-app-keda-service/send?name=record4&content=content4
curl -X POST http://complex-app-keda-service/send?name=record6&content=content5
wait
exit
`)
	records := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, earlier+tutorial.Events) })[earlier:]
	var names, workers []string
	for _, r := range records {
		require.Equal(t, 1, r.Attempts)
		names, workers = append(names, r.Name), append(workers, r.Job)
	}
	require.ElementsMatch(t, []string{"record1", "record2", "record3", "record4", "record6"}, names)
	const ofThisScaledJob = "scaledjob.keda.sh/name=processor-scaled-job"
	c.Run(t, "kubectl", "wait", "--for=condition=Complete", "jobs", "-l", ofThisScaledJob, "--timeout", "1m")
	pods := strings.Fields(c.Run(t, "kubectl", "get", "pods", "-l", ofThisScaledJob, "-o", "jsonpath={.items[*].metadata.name}"))
	require.ElementsMatch(t, pods, workers, "five events, five Jobs, five records")
	tutorial.LogTimes(t, records)

	c.Run(t, "kubectl", "delete", "-f", manifest)
	c.Run(t, "kubectl", "apply", "-f", "deploy/")
}

// drained evicts complex-app's pods, as a drain does, while no other pod may start: as
// if this were the only node. A quota stands for the missing place.
func drained(t *testing.T, c cluster) {
	ctx := t.Context()
	get := func(t require.TestingT, args ...string) string {
		out, err := c.Try(ctx, "", "kubectl", append([]string{"get"}, args...)...)
		require.NoError(t, err)
		return out
	}
	pods := func(t require.TestingT) []string {
		return strings.Fields(get(t, "pods", "-l", "app.kubernetes.io/name=complex-app", "-o", "jsonpath={.items[*].metadata.name}"))
	}
	settle := func() {
		c.Run(t, "kubectl", "delete", "resourcequota", "no-place", "--ignore-not-found")
		c.Run(t, "kubectl", "rollout", "restart", "deployment/complex-app") // at once, not when its controller tries again
		c.Run(t, "kubectl", "rollout", "status", "deployment/complex-app", "--timeout", "3m")
		tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) { require.Len(collect, pods(collect), 2) })
	}
	c.Run(t, "kubectl", "create", "quota", "no-place", "--hard", "pods=0")
	for _, pod := range pods(t) {
		c.evict(t, pod)
	}
	settle()

	c.Run(t, "kubectl", "apply", "-k", "deploy/disruption-budget/")
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.Equal(collect, "1", get(collect, "pdb", "complex-app", "-o", "jsonpath={.status.disruptionsAllowed}"))
	})
	c.Run(t, "kubectl", "create", "quota", "no-place", "--hard", "pods=0")
	both := pods(t)
	c.evict(t, both[0])
	require.ErrorContains(t, c.tryToEvict(t, both[1]), "disruption budget")
	settle()

	// pods that are not ready serve nobody, so the budget lets all of them go
	c.Run(t, "kubectl", "patch", "deployment", "complex-app", "-p", `{"spec":{
		"strategy":{"type":"Recreate","rollingUpdate":null},
		"template":{"spec":{"containers":[{"name":"complex-app","readinessProbe":{"httpGet":{"path":"/nowhere"}}}]}}}}`)
	tutorial.Eventually(t, 2*time.Minute, func(collect *assert.CollectT) {
		require.Equal(collect, "0 2 2", get(collect, "pdb", "complex-app", "-o", "jsonpath={.status.currentHealthy} {.status.expectedPods} ")+
			get(collect, "deployment", "complex-app", "-o", "jsonpath={.status.updatedReplicas}"))
	})
	for _, pod := range pods(t) {
		c.evict(t, pod)
	}
	c.Run(t, "kubectl", "delete", "-k", "deploy/disruption-budget/")
	c.Run(t, "kubectl", "patch", "deployment", "complex-app", "-p", `{"spec":{"strategy":{"type":"RollingUpdate"}}}`)
	c.Run(t, "kubectl", "apply", "-f", "deploy/")
	c.Run(t, "kubectl", "rollout", "status", "deployment/complex-app", "--timeout", "3m")
}

// named returns the record with a name, or an empty one.
func named(records []tutorial.Record, name string) tutorial.Record {
	for _, r := range records {
		if r.Name == name {
			return r
		}
	}
	return tutorial.Record{}
}

// rollingRestart sends events without a pause while complex-app's pods are
// replaced: all must be accepted, and all accepted ones be in the queue.
func rollingRestart(t *testing.T, c cluster) {
	c.Run(t, "kubectl", "delete", "scaledjob", "processor-job") // the queue is to be counted
	type result struct {
		statuses []string
		err      error
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	done := make(chan result, 1)
	go func() {
		out, err := c.Try(ctx, "", "kubectl", "exec", "client", "--", "sh", "-c", `
			for worker in 1 2 3 4; do
				until [ -e /tmp/stop ]; do
					curl -s -o /dev/null -w '%{http_code}\n' --max-time 20 -X POST "`+service+`/send?name=restart"
				done &
			done
			wait`)
		done <- result{strings.Fields(out), err}
	}()
	c.Run(t, "kubectl", "rollout", "restart", "deployment/complex-app")
	c.Run(t, "kubectl", "rollout", "status", "deployment/complex-app", "--timeout", "3m")
	// until the old pods are gone, too: they are the ones that could drop a request
	tutorial.Eventually(t, 2*time.Minute, func(collect *assert.CollectT) {
		out, err := c.Try(ctx, "", "kubectl", "get", "pods", "-l", "app.kubernetes.io/name=complex-app", "-o", "name")
		require.NoError(collect, err)
		require.Len(collect, strings.Fields(out), 2)
	})
	c.Run(t, "kubectl", "exec", "client", "--", "touch", "/tmp/stop")
	r := <-done
	require.NoError(t, r.err)
	for _, status := range r.statuses {
		require.Equal(t, "202", status)
	}
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.Equal(collect, len(r.statuses), c.messages(collect, ctx))
	})
	t.Logf("%d events sent meanwhile, all accepted and all in the queue", len(r.statuses))
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
