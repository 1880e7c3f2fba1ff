//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// clients sends 60 events: four clients, each of which tries again under the
// same Idempotency-Key until the answer is 202. It prints a line for each try.
// An event's content is its id.
const clients = `
for client in 1 2 3 4; do
	for n in $(seq 15); do
		id=chaos-$client-$n
		for try in $(seq 150); do
			status=$(curl -s -o /dev/null -w '%{http_code}' --max-time 15 -H "Idempotency-Key: $id" -X POST "` + service + `/send?name=chaos&content=$id")
			echo $id $status
			[ $status = 202 ] && break
			sleep 2
		done
		sleep 8
	done &
done
wait`

// What goes wrong, and how often.
const (
	workerForced  = "worker forced" // deleted without waiting for its end
	workerDeleted = "worker deleted"
	kedaRestart   = "KEDA"
	rabbitCrash   = "RabbitMQ crashes"
	rabbitRestart = "RabbitMQ"
	mongoCrash    = "MongoDB crashes"
	mongoRestart  = "MongoDB"
	appRestart    = "complex-app"
)

var faults = map[string]int{
	workerForced: 7, workerDeleted: 7, kedaRestart: 1, appRestart: 1,
	rabbitCrash: 1, rabbitRestart: 1, mongoCrash: 1, mongoRestart: 1,
}

// chaos sends 60 events while pods are deleted, and compares what was accepted
// with what is there in the end. SEED decides what goes wrong in which order; the
// cluster decides what it meets.
func chaos(t *testing.T, c cluster) {
	kedaStays.Lock()
	defer kedaStays.Unlock()
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SEED"), "1"), 10, 64)
	require.NoError(t, err, "SEED")
	// PROCESSING_TIME: short, but a Job is still at work when a slow kubectl stops it
	edit(t, c.scaledJob(), "value: 40s\n", "value: 8s\n")
	c.Run(t, "kubectl", "apply", "-f", c.scaledJob())
	jobsBefore, err := c.jobs(t.Context())
	require.NoError(t, err)

	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	type result struct {
		tries string
		err   error
	}
	sending := make(chan result, 1)
	go func() {
		out, err := c.Try(ctx, "", "kubectl", "exec", "client", "--", "sh", "-c", clients)
		sending <- result{out, err}
	}()
	hits := c.inflict(t, seed)
	sent := <-sending
	require.NoError(t, sent.err)

	tried, accepted := answers(t, sent.tries)
	v := verdict{accepted: accepted}
	var redriven struct{ Redriven int }
	defer func() { // also when something is lost
		jobs, err := c.jobs(context.WithoutCancel(t.Context()))
		assert.NoError(t, err)
		assert.Greater(t, jobs.failed, jobsBefore.failed, "no Job was stopped at its work")
		logRow(t, [][2]any{
			{"seed", seed}, {"sent", len(tried)}, {"accepted", len(accepted)}, {"stored", len(v.done)},
			{"more than one attempt", v.again}, {"dead, redriven", redriven.Redriven}, {"lost", len(v.lost)}, {"doubled", len(v.doubled)},
			{"Jobs: succeeded/failed", fmt.Sprintf("%d/%d", jobs.succeeded-jobsBefore.succeeded, jobs.failed-jobsBefore.failed)},
			{"kills: forced/deleted", fmt.Sprintf("%d/%d", hits[workerForced], hits[workerDeleted])},
			{"restarts: KEDA/RabbitMQ/MongoDB/complex-app", fmt.Sprintf("%d/%d/%d/%d", hits[kedaRestart],
				hits[rabbitCrash]+hits[rabbitRestart], hits[mongoCrash]+hits[mongoRestart], hits[appRestart])},
			{"seconds", int(time.Since(began).Seconds())},
		})
	}()
	c.settle(t, &v)
	out, err := c.curl(t.Context(), "--fail", "-X", "POST", service+"/dead-letters/redrive")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), &redriven))
	c.settle(t, &v)
	require.Empty(t, v.queued, "dead letters are left after the redrive")
	require.Len(t, accepted, 60)
	require.Len(t, v.done, 60)
	for fault, n := range faults {
		if fault == workerForced || fault == workerDeleted {
			n = 1 // there may have been none at work when their turn came
		}
		require.GreaterOrEqual(t, hits[fault], n, fault)
	}
}

// answers reads what the clients printed: the ids of the events that they sent,
// and of those that were accepted. Other answers than 202 are 503, or 000 for
// none at all.
func answers(t *testing.T, tries string) (sent, accepted map[string]bool) {
	t.Helper()
	sent, accepted = map[string]bool{}, map[string]bool{}
	counts := map[string]int{}
	for line := range strings.Lines(tries) {
		id, status, _ := strings.Cut(strings.TrimSpace(line), " ")
		require.Contains(t, []string{"202", "503", "000"}, status, id)
		counts[status]++
		sent[id] = true
		if status == "202" {
			accepted[id] = true
		}
	}
	t.Logf("answers: %v", counts)
	return sent, accepted
}

// logRow logs a row of Markdown with its head, so that the rows of several runs
// make one table.
func logRow(t *testing.T, columns [][2]any) {
	t.Helper()
	var head, rule, row strings.Builder
	for _, column := range columns {
		fmt.Fprintf(&head, "| %v ", column[0])
		rule.WriteString("| --- ")
		fmt.Fprintf(&row, "| %v ", column[1])
	}
	t.Logf("\n%s|\n%s|\n%s|", head.String(), rule.String(), row.String())
}

// inflict lets everything go wrong, one thing after the other, and returns how
// many pods each hit.
func (c cluster) inflict(t *testing.T, seed uint64) map[string]int {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	var plan []string
	for _, fault := range slices.Sorted(maps.Keys(faults)) {
		plan = append(plan, slices.Repeat([]string{fault}, faults[fault])...)
	}
	r.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })

	hits := map[string]int{}
	began := time.Now()
	for _, fault := range plan {
		require.NoError(t, pause(t.Context(), time.Duration(r.IntN(4000))*time.Millisecond))
		hit := c.commit(t, r, fault)
		hits[fault] += hit
		t.Logf("%3.0f s: %s, %d hit", time.Since(began).Seconds(), fault, hit)
	}
	return hits
}

// commit lets one thing go wrong, and returns how many pods it hit. A server that
// crashes has one second to stop. It is not deleted by force, which would start
// its successor while it may still write to their volume.
func (c cluster) commit(t *testing.T, r *rand.Rand, fault string) int {
	t.Helper()
	remove := func(args ...string) int {
		return deleted(c.Run(t, "kubectl", append([]string{"delete", "pod", "--ignore-not-found"}, args...)...))
	}
	waitFor := func(what string) {
		c.Run(t, "kubectl", "rollout", "status", what, "--timeout", patience.String())
	}
	restart := func(server string, how ...string) int {
		waitFor("statefulset/" + server)
		return remove(append(how, server+"-0")...)
	}
	one := func(service string, how ...string) int {
		pods := c.waitForPods(t, service)
		if len(pods) == 0 {
			return 0
		}
		return remove(append(how, pods[r.IntN(len(pods))])...)
	}
	switch fault {
	case workerForced:
		return one("processor-job", "--force", "--grace-period=0")
	case workerDeleted:
		return one("processor-job", "--wait=false")
	case appRestart:
		waitFor("deployment/complex-app")
		return one("complex-app", "--wait=false")
	case rabbitCrash:
		return restart("rabbitmq", "--now")
	case rabbitRestart:
		return restart("rabbitmq")
	case mongoCrash:
		return restart("mongodb", "--now")
	case mongoRestart:
		return restart("mongodb")
	default:
		return c.restartKEDA(t)
	}
}

// waitForPods returns the pods of a service that are ready, a worker from its
// claim on, and not told to stop. It returns none when there is none for a while.
func (c cluster) waitForPods(t *testing.T, service string) []string {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; {
		if pods := c.pods(t, service); len(pods) > 0 || time.Now().After(deadline) {
			return pods
		}
		require.NoError(t, pause(t.Context(), time.Second))
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c cluster) pods(t *testing.T, service string) (names []string) {
	t.Helper()
	out := c.Run(t, "kubectl", "get", "pods", "-l", "app.kubernetes.io/name="+service, "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[1] == "True" {
			names = append(names, fields[0])
		}
	}
	return names
}

// verdict compares the events that were accepted with what has become of them.
type verdict struct {
	accepted, done       map[string]bool // ids
	queued               map[string]bool // ids of dead letters, or of messages that wait
	lost, doubled, wrong []string        // ids: wrong is any other record than was sent
	again                int             // records whose message had more than one attempt
}

// settle waits until nothing waits or works any more, and every accepted event
// is a done record or a dead letter. A busy machine needs some minutes for all Jobs.
func (c cluster) settle(t *testing.T, v *verdict) {
	t.Helper()
	tutorial.Eventually(t, 3*patience, func(collect *assert.CollectT) {
		found, err := c.jobs(t.Context())
		require.NoError(collect, err)
		require.Zero(collect, found.running)
		out, err := c.curl(t.Context(), "--fail", service+"/dead-letters")
		require.NoError(collect, err)
		var dead []struct{ ID string }
		require.NoError(collect, json.Unmarshal([]byte(out), &dead))
		v.queued = map[string]bool{}
		for _, d := range dead {
			v.queued[d.ID] = true
		}
		v.judge(c.data(collect, t.Context()))
		require.Empty(collect, v.lost, "lost")
		require.Equal(collect, 0, c.messages(collect, t.Context()))
	})
	require.Empty(t, v.doubled, "doubled")
	require.Empty(t, v.wrong, "not what was sent")
}

func (v *verdict) judge(records []tutorial.Record) {
	*v = verdict{accepted: v.accepted, queued: v.queued, done: map[string]bool{}}
	seen := map[string]bool{}
	for _, r := range records {
		if r.Name != "chaos" {
			continue // of an earlier step
		}
		if seen[r.Content] {
			v.doubled = append(v.doubled, r.Content)
		}
		seen[r.Content] = true
		if r.ID != r.Content || !v.accepted[r.ID] {
			v.wrong = append(v.wrong, r.ID)
		}
		if r.Status == "done" {
			v.done[r.ID] = true
		}
		if r.Attempts > 1 {
			v.again++
		}
	}
	for id := range v.accepted {
		if !v.done[id] && !v.queued[id] {
			v.lost = append(v.lost, id)
		}
	}
}
