//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
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
		sleep 4
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
	workerForced: 8, workerDeleted: 8, kedaRestart: 1, appRestart: 1,
	rabbitCrash: 1, rabbitRestart: 1, mongoCrash: 1, mongoRestart: 1,
}

// chaos sends 60 events while pods are deleted, and compares what was accepted
// with what is there in the end. SEED decides what goes wrong in which order; the
// cluster decides what it meets.
func chaos(t *testing.T, c cluster) {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SEED"), "1"), 10, 64)
	require.NoError(t, err, "SEED")
	edit(t, c.scaledJob(), "value: 20s\n", "value: 3s\n") // PROCESSING_TIME
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

	v := verdict{accepted: accepted(t, sent.tries)}
	var redriven struct{ Redriven int }
	defer func() {
		jobsThen, err := c.jobs(context.WithoutCancel(t.Context()))
		assert.NoError(t, err)
		t.Logf("\n| seed | sent | accepted | stored | dead, redriven | lost | doubled | Jobs: succeeded/failed | kills: forced/deleted | restarts: KEDA/RabbitMQ/MongoDB/complex-app | seconds |\n"+
			"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"+
			"| %d | %d | %d | %d | %d | %d | %d | %d/%d | %d/%d | %d/%d/%d/%d | %.0f |",
			seed, len(v.accepted), len(v.accepted), len(v.done), redriven.Redriven, len(v.lost), len(v.doubled),
			jobsThen.succeeded-jobsBefore.succeeded, jobsThen.failed-jobsBefore.failed, hits[workerForced], hits[workerDeleted],
			hits[kedaRestart], hits[rabbitCrash]+hits[rabbitRestart], hits[mongoCrash]+hits[mongoRestart], hits[appRestart],
			time.Since(began).Seconds())
	}()
	c.settle(t, &v)
	out, err := c.curl(t.Context(), "--fail", "-X", "POST", service+"/dead-letters/redrive")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), &redriven))
	c.settle(t, &v)
	require.Empty(t, v.dead, "dead letters are left after the redrive")
	require.Len(t, v.accepted, 60)
	require.Len(t, v.done, 60)
	for fault, n := range faults {
		if fault == workerForced || fault == workerDeleted {
			n /= 2 // there may have been none at work
		}
		require.GreaterOrEqual(t, hits[fault], n, fault)
	}
}

// accepted reads what the clients printed: the ids that were answered with 202.
// Other answers are 503, or 000 for none at all.
func accepted(t *testing.T, tries string) map[string]bool {
	t.Helper()
	ids, counts := map[string]bool{}, map[string]int{}
	for line := range strings.Lines(tries) {
		id, status, _ := strings.Cut(strings.TrimSpace(line), " ")
		require.Contains(t, []string{"202", "503", "000"}, status, id)
		counts[status]++
		if status == "202" {
			ids[id] = true
		}
	}
	t.Logf("answers: %v", counts)
	return ids
}

// inflict lets everything go wrong, one thing after the other, and returns how
// often it hit something.
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
		require.NoError(t, pause(t.Context(), time.Duration(r.IntN(5000))*time.Millisecond))
		hit := c.commit(t, r, fault)
		hits[fault] += hit
		t.Logf("%3.0f s: %s, %d hit", time.Since(began).Seconds(), fault, hit)
	}
	return hits
}

// commit lets one thing go wrong. A server crashes when it gets one second
// to stop. It is never forced: Kubernetes would start its successor
// while it may still write to their volume.
func (c cluster) commit(t *testing.T, r *rand.Rand, fault string) int {
	t.Helper()
	remove := func(args ...string) int {
		return deleted(c.Run(t, "kubectl", append([]string{"delete", "pod", "--ignore-not-found"}, args...)...))
	}
	restart := func(server string, how ...string) int {
		c.Run(t, "kubectl", "rollout", "status", "statefulset/"+server, "--timeout", patience.String())
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
	for range 30 {
		if pods := c.pods(t, service); len(pods) > 0 {
			return pods
		}
		require.NoError(t, pause(t.Context(), time.Second))
	}
	return nil
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
	accepted map[string]bool
	done     map[string]bool
	dead     map[string]bool
	// ids, and all that is wrong with the records of these events
	lost, doubled, wrong []string
}

// settle waits until nothing waits or works any more, and every accepted event
// is a done record or a dead letter.
func (c cluster) settle(t *testing.T, v *verdict) {
	t.Helper()
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		found, err := c.jobs(t.Context())
		require.NoError(collect, err)
		require.Zero(collect, found.running)
		out, err := c.curl(t.Context(), "--fail", service+"/dead-letters")
		require.NoError(collect, err)
		var dead []struct{ ID string }
		require.NoError(collect, json.Unmarshal([]byte(out), &dead))
		v.dead = map[string]bool{}
		for _, d := range dead {
			v.dead[d.ID] = true
		}
		v.judge(c.data(collect, t.Context()))
		require.Empty(collect, v.lost, "lost")
		require.Equal(collect, 0, c.messages(collect, t.Context()))
	})
	require.Empty(t, v.doubled, "doubled")
	require.Empty(t, v.wrong, "not what was sent")
}

func (v *verdict) judge(records []tutorial.Record) {
	v.done, v.lost, v.doubled, v.wrong = map[string]bool{}, nil, nil, nil
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
	}
	for id := range v.accepted {
		if !v.done[id] && !v.dead[id] {
			v.lost = append(v.lost, id)
		}
	}
}
