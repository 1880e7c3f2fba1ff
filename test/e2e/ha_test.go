//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestHighAvailability deploys deploy/ha in the place of the one RabbitMQ, and takes its
// nodes away in several ways while 64 clients send and Jobs work. One of the ways is a
// NetworkPolicy, so it needs a cluster that enforces them.
func TestHighAvailability(t *testing.T) {
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"three RabbitMQ nodes form a cluster", threeNodes},
		{"the queues have three replicas", replicated},
		{"nothing is lost while nodes fail", nodesFail},
		{"the folder is taken away", haRemoved},
	})
}

func threeNodes(t *testing.T, c cluster) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	c.Run(t, "kubectl", "create", "secret", "generic", "rabbitmq-cookie", "--from-literal=cookie="+hex.EncodeToString(secret))
	c.Run(t, "kubectl", "apply", "-f", "deploy/00-secret.yaml", "-f", "deploy/infrastructure/mongodb.yaml", "-f", "deploy/ha/")
	for _, server := range []string{"statefulset/rabbitmq", "statefulset/mongodb"} {
		c.Run(t, "kubectl", "rollout", "status", server, "--timeout", "6m")
	}
	c.keepAllJobs(t)
	edit(t, c.scaledJob(), "maxReplicaCount: 10", "maxReplicaCount: 3") // some work is enough, and leaves the machine to the nodes
	application(t, c)
	c.startClient(t)
}

// quorum is a quorum queue, as rabbitmqctl lists it: nodes by name.
type quorum struct {
	Name, Leader    string
	Members, Online []string
}

// quorums asks one of the nodes.
func (c cluster) quorums(t require.TestingT, node string) (queues []quorum) {
	out, err := c.Try(context.Background(), "", "kubectl", "exec", node, "-c", "rabbitmq", "--",
		"rabbitmqctl", "-q", "--formatter", "json", "list_queues", "name", "leader", "members", "online")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), &queues), "%s", out)
	return slices.DeleteFunc(queues, func(q quorum) bool { return len(q.Members) == 0 }) // the lock is no quorum queue
}

// whole waits until all nodes are ready and each queue has all of its replicas.
func (c cluster) whole(t *testing.T) {
	t.Helper()
	c.Run(t, "kubectl", "rollout", "status", "statefulset/rabbitmq", "--timeout", "15m")
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		for _, pod := range []string{"rabbitmq-0", "rabbitmq-1", "rabbitmq-2"} {
			_, err := c.Try(t.Context(), "", "kubectl", "wait", "--for=condition=Ready", "pod/"+pod, "--timeout", "1s")
			require.NoError(collect, err)
		}
		queues := c.quorums(collect, "rabbitmq-1")
		require.Len(collect, queues, 2)
		for _, q := range queues {
			require.Len(collect, q.Members, 3, q.Name)
			require.Len(collect, q.Online, 3, q.Name)
		}
	})
}

// leader is the pod with the leader of the queue of events.
func (c cluster) leader(t *testing.T) string {
	t.Helper()
	var pod string
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		for _, q := range c.quorums(collect, "rabbitmq-1") {
			if q.Name == "task_queue" {
				_, host, _ := strings.Cut(q.Leader, "@")
				pod, _, _ = strings.Cut(host, ".")
			}
		}
		require.Regexp(collect, `^rabbitmq-\d$`, pod)
	})
	return pod
}

func replicated(t *testing.T, c cluster) {
	c.whole(t)
	budget := c.Run(t, "kubectl", "get", "poddisruptionbudget", "rabbitmq", "-o", "jsonpath={.status.disruptionsAllowed}")
	require.Equal(t, "1", budget, "one node at a time may be drained")
}

func haRemoved(t *testing.T, c cluster) {
	// the nodes first, and at once: each would wait for the others, which end as well
	c.Run(t, "kubectl", "delete", "statefulset", "rabbitmq", "--cascade=orphan")
	c.Run(t, "kubectl", "delete", "pods", "-l", "app.kubernetes.io/name=rabbitmq", "--now")
	c.Run(t, "kubectl", "delete", "-f", "deploy/ha/", "--ignore-not-found", "--timeout", "3m")
	require.Empty(t, c.Run(t, "kubectl", "get", "statefulsets,services,configmaps,poddisruptionbudgets", "-l", "app.kubernetes.io/name=rabbitmq", "-o", "name"))
}

// fault is something that happens to the nodes. It returns when all are back.
type fault struct {
	name     string
	majority bool // of the nodes is left
	happen   func(*testing.T, cluster)
}

var nodeFaults = []fault{
	{"the leader's pod is deleted", true, func(t *testing.T, c cluster) {
		c.Run(t, "kubectl", "delete", "pod", c.leader(t), "--wait=false")
	}},
	{"the leader's pod is deleted by force", true, func(t *testing.T, c cluster) {
		c.Run(t, "kubectl", "delete", "pod", c.leader(t), "--force", "--grace-period=0")
	}},
	// the second one as soon as the first is ready, which does not mean that its replicas
	// have caught up: preStop waits for those
	{"two pods are deleted, one after the other", true, func(t *testing.T, c cluster) {
		c.Run(t, "kubectl", "delete", "pod", "rabbitmq-0")
		c.Run(t, "kubectl", "rollout", "status", "statefulset/rabbitmq", "--timeout", "5m")
		c.Run(t, "kubectl", "delete", "pod", "rabbitmq-1", "--wait=false")
	}},
	{"all three are restarted in turn", true, func(t *testing.T, c cluster) {
		c.Run(t, "kubectl", "rollout", "restart", "statefulset/rabbitmq")
	}},
	{"a NetworkPolicy cuts the leader off for 30 s", true, cutOff},
	{"two pods are deleted at once, by force: no majority", false, func(t *testing.T, c cluster) {
		c.Run(t, "kubectl", "delete", "pod", "rabbitmq-0", "rabbitmq-2", "--force", "--grace-period=0")
	}},
}

// cutOff lets nothing into the leader's pod and nothing out for 30 s. Some firewalls look
// at new connections only, so the node is told to close those to its peers, and goes on
// with it until the policy is in force. Its clients' connections stay open, and get no
// answer any more.
func cutOff(t *testing.T, c cluster) {
	pod := c.leader(t)
	c.gather(t, pod)
	c.Run(t, "kubectl", "exec", pod, "-c", "rabbitmq", "--", "rabbitmqctl", "eval",
		`spawn(fun() -> [begin timer:sleep(200), [erlang:disconnect_node(N) || N <- nodes()] end || _ <- lists:seq(1, 300)] end), ok.`)
	_, err := c.Try(t.Context(), fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"cut-off"},
		"spec":{"podSelector":{"matchLabels":{"statefulset.kubernetes.io/pod-name":%q}},"policyTypes":["Ingress","Egress"]}}`, pod), "kubectl", "create", "-f", "-")
	require.NoError(t, err)
	// of the majority's own accord: the node that is cut off cannot tell
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		for _, q := range c.quorums(collect, another(pod)) {
			require.Len(collect, q.Online, 2, "does the network plugin enforce NetworkPolicies?")
		}
	})
	require.NoError(t, pause(t.Context(), 30*time.Second))
	c.Run(t, "kubectl", "delete", "networkpolicy", "cut-off")
}

// publisherConnection finds those of complex-app's publishers: an id, which begins with the
// node's name, and a connection's name.
var publisherConnection = regexp.MustCompile(`(<rabbit@(rabbitmq-\d)\.\S+>)\s.*"complex-app"`)

// gather leads complex-app's publishers to one node, which is the worst that can happen: it
// closes those that are elsewhere until chance has brought them there.
func (c cluster) gather(t *testing.T, pod string) {
	t.Helper()
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		rabbitmqctl := func(args ...string) (string, error) {
			return c.Try(t.Context(), "", "kubectl", append([]string{"exec", another(pod), "-c", "rabbitmq", "--", "rabbitmqctl"}, args...)...)
		}
		out, err := rabbitmqctl("list_connections", "pid", "client_properties")
		require.NoError(collect, err)
		there := 0
		for _, connection := range publisherConnection.FindAllStringSubmatch(out, -1) {
			if pid, node := connection[1], connection[2]; node == pod {
				there++
			} else {
				_, err := rabbitmqctl("close_connection", pid, "the test wants it elsewhere")
				require.NoError(collect, err)
			}
		}
		require.Equal(collect, 2, there, "of %s", out)
	})
}

// another is a node that is not the given one.
func another(pod string) string {
	if pod == "rabbitmq-1" {
		return "rabbitmq-2"
	}
	return "rabbitmq-1"
}

// load is what 64 clients sent, and when it was accepted.
type load struct {
	mu       sync.Mutex
	sent     map[string]bool
	accepted map[string]time.Time
	statuses map[int]int
}

const senders = 64

// send sends events until ctx ends: each client one about every second, again under the
// same key until it is accepted. The addresses are those of complex-app's pods, of which
// each try takes the next, as a Service would.
func (l *load) send(ctx context.Context, addresses []string) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for client := range senders {
		clients.Go(func() {
			transport := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			try := client
			for n := 0; pause(ctx, time.Duration(800+(client*37+n*61)%400)*time.Millisecond) == nil; n++ {
				id := fmt.Sprintf("ha-%d-%d", client, n)
				l.note(id, 0)
				for status := 0; status != http.StatusAccepted; try++ {
					status = post(transport, addresses[try%len(addresses)], id)
					l.note(id, status)
					if status != http.StatusAccepted {
						time.Sleep(100 * time.Millisecond) // also after ctx: this one is to be finished
					}
				}
			}
		})
	}
}

func post(client *http.Client, address, id string) int {
	request, err := http.NewRequest(http.MethodPost, address+"/send?name=chaos&content="+id, nil)
	if err != nil {
		return -1
	}
	request.Header.Set("Idempotency-Key", id)
	response, err := client.Do(request)
	if err != nil {
		return -1
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func (l *load) note(id string, status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[id] = true
	if status != 0 {
		l.statuses[status]++
	}
	if status == http.StatusAccepted {
		l.accepted[id] = time.Now()
	}
}

// longestGap is the longest time without an accepted event.
func (l *load) longestGap(from, to time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := []time.Time{from, to}
	for _, a := range l.accepted {
		if a.After(from) && a.Before(to) {
			at = append(at, a)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	var gap time.Duration
	for i := range at[1:] {
		gap = max(gap, at[i+1].Sub(at[i]))
	}
	return gap
}

// nodesFail lets one fault follow the other under load, and then compares what was
// accepted with the records.
func nodesFail(t *testing.T, c cluster) {
	var addresses []string
	for _, pod := range c.pods(t, "complex-app") {
		addresses = append(addresses, "http://"+c.forward(t, pod, 8080))
	}
	require.Len(t, addresses, 2)
	l := &load{sent: map[string]bool{}, accepted: map[string]time.Time{}, statuses: map[int]int{}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sending := make(chan struct{})
	go func() { defer close(sending); l.send(ctx, addresses) }()
	require.NoError(t, pause(t.Context(), 10*time.Second))

	var rows strings.Builder
	for _, f := range nodeFaults {
		t.Run(f.name, func(t *testing.T) { // so that -run picks some
			from, before := time.Now(), l.count()
			f.happen(t, c)
			c.whole(t)
			require.NoError(t, pause(t.Context(), 5*time.Second))
			gap, after := l.longestGap(from, time.Now()), l.count()
			fmt.Fprintf(&rows, "| %s | %.1f s | %d | %d | %.0f s |\n", f.name, gap.Seconds(), after.accepted-before.accepted, after.refused-before.refused, time.Since(from).Seconds())
			t.Logf("%s without a 202", gap)
			if f.majority {
				assert.Less(t, gap, 5*time.Second)
			}
		})
	}
	stop()
	<-sending
	t.Logf("\n| what happens | longest time without a 202 | accepted meanwhile | other answers | until all is whole |\n| --- | --- | --- | --- | --- |\n%s", rows.String())
	t.Logf("answers: %v", l.statuses)

	// The Jobs end what they have begun. Nobody waits for thousands of others: what is in
	// the queue is not lost.
	c.Run(t, "kubectl", "delete", "scaledjob", "processor-job", "--cascade=orphan")
	var all jobs
	tutorial.Eventually(t, patience, func(collect *assert.CollectT) {
		var err error
		all, err = c.jobs(t.Context())
		require.NoError(collect, err)
		require.Zero(collect, all.running)
	})
	v := verdict{accepted: map[string]bool{}, queued: map[string]bool{}}
	for id := range l.accepted {
		v.accepted[id] = true
	}
	twice := 0
	for id, n := range c.takeAll(t) {
		v.queued[id] = true
		if n > 1 {
			twice++
		}
	}
	v.judge(c.data(t, t.Context()))
	logRow(t, [][2]any{
		{"clients", senders}, {"sent", len(l.sent)}, {"accepted", len(l.accepted)}, {"done by a Job", len(v.done)}, {"left in the queue", len(v.queued)},
		{"of these twice, under one id", twice}, {"Jobs: succeeded/failed", fmt.Sprintf("%d/%d", all.succeeded, all.failed)}, {"lost", len(v.lost)}, {"doubled", len(v.doubled)},
	})
	require.Len(t, l.accepted, len(l.sent))
	require.NotEmpty(t, v.done, "Jobs have worked meanwhile")
	require.Empty(t, v.lost)
	require.Empty(t, v.doubled)
	require.Empty(t, v.wrong)
}

// takeAll takes all messages out of the queue and counts them by id.
func (c cluster) takeAll(t *testing.T) map[string]int {
	t.Helper()
	conn, err := amqp.DialConfig("amqp://"+c.forward(t, "rabbitmq-1", 5672), amqp.Config{
		SASL: []amqp.Authentication{&amqp.PlainAuth{Username: "user", Password: "P@ssw0rd"}}, // of deploy/00-secret.yaml
	})
	require.NoError(t, err)
	defer conn.Close()
	ch, err := conn.Channel()
	require.NoError(t, err)
	ids := map[string]int{}
	for {
		m, ok, err := ch.Get("task_queue", true)
		require.NoError(t, err)
		if !ok {
			return ids
		}
		ids[m.MessageId]++
	}
}

type counts struct{ accepted, refused int }

func (l *load) count() (n counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for status, times := range l.statuses {
		if status != http.StatusAccepted {
			n.refused += times
		}
	}
	n.accepted = len(l.accepted)
	return n
}

// forward opens a port of this machine to one of a pod, and returns its address.
func (c cluster) forward(t *testing.T, pod string, port int) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "kubectl", "port-forward", "pod/"+pod, fmt.Sprint(":", port))
	command.Env = append(os.Environ(), c.Env...)
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	t.Cleanup(func() { _ = command.Wait() })
	reader := bufio.NewReader(out)
	first, err := reader.ReadString('\n')
	require.NoError(t, err)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(first)
	require.NotEmpty(t, address, first)
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	return address
}
