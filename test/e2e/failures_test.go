//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

const (
	// maxJobs is maxReplicaCount in deploy/processor-job.yaml.
	maxJobs = 10
	// patience is for what a busy machine may take long for.
	patience = 5 * time.Minute
)

// kedaStays is for the tests that count on KEDA's numbers all the time, against those
// that restart it.
var kedaStays sync.RWMutex

// TestFailures lets parts of the cluster fail while Jobs work. It restarts the
// cluster's KEDA, so that no ScaledJob of anybody gets new Jobs for some seconds.
func TestFailures(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"the application starts", countable},
		{"KEDA is restarted while Jobs run and messages wait", kedaRestarted},
		{"a pod is evicted, a Job deleted, another out of memory", workersStopped},
		{"a message whose pods all die becomes a dead letter, and is sent back", deadLetter},
		{"nothing is lost in chaos", chaos},
	})
}

// countable deploys the application with work that is long enough for a Job to be
// stopped at it on a busy machine, and has KEDA keep all finished Jobs, so that they
// can be counted.
func countable(t *testing.T, c cluster) {
	c.keepAllJobs(t)
	edit(t, c.scaledJob(), "value: 20s\n", "value: 40s\n")
	application(t, c)
	c.startClient(t)
}

// keepAllJobs has KEDA keep all finished Jobs, so that they can be counted.
func (c cluster) keepAllJobs(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"successful", "failed"} {
		edit(t, c.scaledJob(), kind+"JobsHistoryLimit: 5", kind+"JobsHistoryLimit: 500")
	}
}

func (c cluster) scaledJob() string { return filepath.Join(c.Dir, "deploy", "processor-job.yaml") }

func kedaRestarted(t *testing.T, c cluster) {
	kedaStays.Lock()
	defer kedaStays.Unlock()
	const events = maxJobs + 3
	c.send(t, numbered("keda", events)...)
	before := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return len(r) >= maxJobs })
	require.Less(t, len(before), events, "no message waits any more")

	require.Positive(t, c.restartKEDA(t))
	after := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, events) })
	for _, r := range after {
		require.Equal(t, 1, r.Attempts, "the first Job of %s died", r.Name)
	}
	for _, r := range before {
		require.Equal(t, r.Job, named(after, r.Name).Job)
	}
	c.requireJobs(t, jobs{succeeded: events})
	tutorial.LogTimes(t, after)
}

// restartKEDA deletes the pods of KEDA's operator, wherever it is installed, and
// returns how many there were. Their Deployment makes new ones.
func (c cluster) restartKEDA(t *testing.T) int {
	t.Helper()
	label := "app=keda-operator"
	namespace, _, _ := strings.Cut(c.Run(t, "kubectl", "get", "pods", "-A", "-l", label, "-o", "jsonpath={.items[*].metadata.namespace}"), " ")
	require.NotEmpty(t, namespace, "no pod with the label %s in any namespace: where is KEDA's operator?", label)
	return deleted(c.Run(t, "kubectl", "delete", "pod", "-n", namespace, "-l", label, "--wait=false"))
}

// deleted counts the objects that kubectl delete says it has deleted.
func deleted(out string) int { return strings.Count(out, " deleted") }

// workersStopped stops three Jobs, each in another way, and leaves one alone.
func workersStopped(t *testing.T, c cluster) {
	earlier := c.data(t, t.Context())
	jobsBefore, err := c.jobs(t.Context())
	require.NoError(t, err)
	c.send(t, "evicted", "deleted", "hungry", "kept")
	var records []tutorial.Record
	mine := func(name string) tutorial.Record { return named(records, name) }
	records = c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return len(r) == len(earlier)+4 })
	evicted, gone, hungry, kept := mine("evicted"), mine("deleted"), mine("hungry"), mine("kept")

	c.evict(t, evicted.Job)
	c.Run(t, "kubectl", "delete", "job", jobOf(gone.Job))
	c.exhaust(t, hungry.Job)

	records = c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, len(earlier)+4) })
	require.Equal(t, kept.Job, mine("kept").Job)
	require.Equal(t, 1, mine("kept").Attempts)
	for _, stopped := range []tutorial.Record{evicted, gone, hungry} {
		require.NotEqual(t, stopped.Job, mine(stopped.Name).Job)
	}
	// the first two were told to stop, which costs no attempt; the third was killed
	require.Equal(t, 1, mine("evicted").Attempts)
	require.Equal(t, 1, mine("deleted").Attempts)
	require.Equal(t, 2, mine("hungry").Attempts)
	// the Job that was deleted is not there to be counted
	c.requireJobs(t, jobs{succeeded: jobsBefore.succeeded + 4, failed: jobsBefore.failed + 2})
	tutorial.LogTimes(t, []tutorial.Record{mine("evicted"), mine("deleted"), mine("hungry"), mine("kept")})
}

// deadLetter kills the worker of each attempt at a message. Deleting its pod, even by
// force, would tell it to stop first, which costs no attempt.
func deadLetter(t *testing.T, c cluster) {
	const deliveries = 5 // the default of RABBITMQ_MAX_ATTEMPTS
	earlier := len(c.data(t, t.Context()))
	c.send(t, "deadly")
	var last tutorial.Record
	for attempt := 1; attempt <= deliveries; attempt++ {
		c.waitForRecords(t, patience, func(r []tutorial.Record) bool {
			last = named(r, "deadly")
			return last.Attempts == attempt
		})
		c.exhaust(t, last.Job)
	}
	type dead struct {
		ID, Reason, Job string
		Attempts        int
	}
	var all []dead
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		out, err := c.curl(t.Context(), "--fail", service+"/dead-letters")
		require.NoError(collect, err)
		require.NoError(collect, json.Unmarshal([]byte(out), &all), "%s", out)
		require.Len(collect, all, 1)
	})
	require.Equal(t, dead{ID: last.ID, Reason: all[0].Reason, Job: last.Job, Attempts: deliveries}, all[0])
	require.NotEmpty(t, all[0].Reason)

	out, err := c.curl(t.Context(), "--fail", "-X", "POST", service+"/dead-letters/redrive?id="+last.ID)
	require.NoError(t, err)
	require.JSONEq(t, `{"redriven":1}`, out)
	records := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, earlier+1) })
	require.Equal(t, deliveries+1, named(records, "deadly").Attempts)
}

// evict does what the drain of a node does to each of its pods.
func (c cluster) evict(t *testing.T, pod string) {
	t.Helper()
	require.NoError(t, c.tryToEvict(t, pod))
}

func (c cluster) tryToEvict(t *testing.T, pod string) error {
	t.Helper()
	_, err := c.Try(t.Context(), `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"`+pod+`"}}`,
		"kubectl", "create", "--raw", "/api/v1/namespaces/"+c.namespace+"/pods/"+pod+"/eviction", "-f", "-")
	return err
}

// exhaust makes a pod reach its memory limit: a second container fills the
// memory that all of the pod's containers share as /dev/shm. That memory belongs
// to no process, so the kernel kills the largest one, which is processor-job.
func (c cluster) exhaust(t *testing.T, pod string) {
	t.Helper()
	c.Run(t, "kubectl", "patch", "pod", pod, "--subresource", "ephemeralcontainers", "-p", `{"spec":{"ephemeralContainers":[{
		"name":"hog","image":"curlimages/curl","imagePullPolicy":"IfNotPresent",
		"command":["sh","-c","head -c 60M /dev/zero >/dev/shm/hog"],
		"securityContext":{"runAsUser":65532}}]}}`)
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		out, err := c.Try(t.Context(), "", "kubectl", "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].state.terminated['reason','exitCode']}")
		require.NoError(collect, err)
		require.Equal(collect, "OOMKilled 137", out)
	})
}

// jobOf returns the name of a pod's Job.
func jobOf(pod string) string { return pod[:strings.LastIndex(pod, "-")] }

// jobs counts Jobs by what has become of them.
type jobs struct{ running, succeeded, failed int }

func (c cluster) jobs(ctx context.Context) (n jobs, err error) {
	out, err := c.Try(ctx, "", "kubectl", "get", "jobs", "-o",
		`jsonpath={range .items[*]}-{.status.conditions[?(@.status=="True")].type}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		switch {
		case strings.Contains(line, "Complete"):
			n.succeeded++
		case strings.Contains(line, "Failed"):
			n.failed++
		default:
			n.running++
		}
	}
	return n, err
}

// requireJobs waits until all Jobs are finished, and until KEDA has looked at
// the empty queue several times and started no more.
func (c cluster) requireJobs(t *testing.T, want jobs) {
	t.Helper()
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		found, err := c.jobs(t.Context())
		require.NoError(collect, err)
		require.Equal(collect, want, found)
	})
	require.Never(t, func() bool {
		found, err := c.jobs(t.Context())
		return err == nil && found != want
	}, 15*tutorial.PollingInterval, time.Second, "there was another Job")
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) { // however often kubectl has failed
		found, err := c.jobs(t.Context())
		require.NoError(collect, err)
		require.Equal(collect, want, found)
	})
}
