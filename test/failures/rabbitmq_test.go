package failures_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// load is clients that send events one after the other, each with a key and
// again until it is accepted, as a good client does.
type load struct {
	mu       sync.Mutex
	accepted map[string]bool // ids
	answers  map[int]int     // by status
	odd      error           // an answer that there should not be
	count    atomic.Int64    // of those accepted
	stop     func()          // and wait for the events under way
}

func startLoad(t *testing.T, app *running, clients int) *load {
	t.Helper()
	l := &load{accepted: map[string]bool{}, answers: map[int]int{}}
	stopping := make(chan struct{})
	var wait sync.WaitGroup
	for client := range clients {
		wait.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stopping:
					return
				default:
				}
				if !l.send(t.Context(), app, fmt.Sprintf("client-%d-%d", client, n)) {
					return
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { close(stopping); wait.Wait() })
	t.Cleanup(l.stop)
	return l
}

// send sends one event until it is accepted, or answered as it should never be.
func (l *load) send(ctx context.Context, app *running, key string) bool {
	for {
		a, err := app.send(ctx, key, "name", "content")
		l.mu.Lock()
		l.answers[a.status]++
		if a.status == http.StatusAccepted {
			l.accepted[a.id] = true
		}
		if err == nil && a.status != http.StatusAccepted && a.status != http.StatusServiceUnavailable {
			err = fmt.Errorf("%+v", a)
		}
		if err != nil {
			l.odd = err
		}
		l.mu.Unlock()
		if err != nil {
			return false
		}
		if a.status == http.StatusAccepted {
			l.count.Add(1)
			return true
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}

func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	want := l.count.Load() + n
	eventually(t, func() bool { return l.count.Load() >= want }, "%d more events are accepted", n)
}

func TestRabbitMQRestartsWhile64ClientsSend(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	app := startApp(t, n.queue, noDatabase(), "CONFIRM_TIMEOUT=5s")
	app.sendUntilAccepted(t, "first")
	for name, end := range map[string]func(){"stopped": n.Stop, "killed": n.Kill} {
		t.Run(name, func(t *testing.T) {
			l := startLoad(t, app, 64)
			l.more(t, 300)
			end()
			require.NoError(t, n.Start(t.Context()))
			l.more(t, 300)
			l.stop()
			require.NoError(t, l.odd)
			require.Positive(t, l.answers[http.StatusServiceUnavailable])
			found := drain(t, n.queue)
			copies := 0
			for _, k := range found {
				copies += k - 1
			}
			for id := range l.accepted {
				require.Contains(t, found, id, "it was answered with 202")
			}
			t.Logf("%d events answered with 202, and %d times 503; %d ids in the queue, and %d second copies",
				len(l.accepted), l.answers[http.StatusServiceUnavailable], len(found), copies)
		})
	}
}

// longest is the longest of some times.
type longest struct {
	mu   sync.Mutex
	took time.Duration
}

func (l *longest) note(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = max(l.took, took)
}

func TestRabbitMQAlarm(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	_, db := servers(t)
	const timeout = 2 * time.Second
	app := startApp(t, n.queue, db, "CONFIRM_TIMEOUT="+timeout.String())
	app.sendUntilAccepted(t, "first")
	publisher := queue.NewPublisher(n.queue, t.Name(), timeout, slog.New(slog.DiscardHandler))
	running, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { publisher.Run(running) })
	t.Cleanup(func() { stop(); run.Wait() })
	eventually(t, func() bool { return publisher.Ready() == nil }, "the publisher is connected")
	before := publishers()
	files := app.openFiles(t)
	big := strings.Repeat("x", 60<<10)

	for _, alarm := range []struct{ name, on, off string }{
		{"memory", "set_vm_memory_high_watermark 0", "set_vm_memory_high_watermark 0.6"},
		{"disk", "set_disk_free_limit 1000000000000000", "set_disk_free_limit 1000000"},
	} {
		t.Run(alarm.name, func(t *testing.T) {
			require.NoError(t, n.Ctl(t.Context(), strings.Fields(alarm.on)...))
			// many at once and large ones, so that the socket's buffers are full
			var wait sync.WaitGroup
			var slowest longest
			for i := range 128 {
				wait.Go(func() {
					a, err := app.send(t.Context(), fmt.Sprint(alarm.name, i), "name", big)
					slowest.note(a.took)
					if err != nil || a.status != http.StatusServiceUnavailable || a.id == "" {
						t.Errorf("%+v %v, not 503 with an id", a, err)
					}
				})
				wait.Go(func() {
					m := contract.Message{ID: fmt.Sprint(alarm.name, "p", i), Event: contract.Event{Name: "name", Content: big}}
					if err := publisher.Publish(t.Context(), m); err == nil {
						t.Errorf("it was published in spite of the alarm")
					}
				})
			}
			wait.Wait()
			t.Logf("the slowest answer took %s with a timeout of %s", slowest.took, timeout)
			require.Less(t, slowest.took, timeout+slack)
			// RabbitMQ tells a connection when it publishes. From then on it is not
			// even tried.
			eventually(t, func() bool {
				a := app.mustSend(t, "during", http.StatusServiceUnavailable)
				return a.took < timeout/2
			}, "the service knows of the alarm")
			require.Equal(t, http.StatusOK, app.answers("/readyz"), "its 503 still has to reach the clients")
			eventually(t, func() bool {
				m := contract.Message{ID: "during", Event: contract.Event{Name: "name"}}
				require.Error(t, publisher.Publish(t.Context(), m))
				return publisher.Ready() != nil && strings.Contains(publisher.Ready().Error(), "alarm")
			}, "the publisher knows of the alarm")

			require.NoError(t, n.Ctl(t.Context(), strings.Fields(alarm.off)...))
			app.sendUntilAccepted(t, "after")
			eventually(t, func() bool { return publisher.Ready() == nil }, "the publisher is back")
			eventually(t, func() bool { return publishers() <= before }, "no goroutine is left")
		})
	}
	http.DefaultClient.CloseIdleConnections()
	eventually(t, func() bool { return app.openFiles(t) <= files+5 }, "no socket is left")
	requireNoPublish(t, app.goroutines(t))
}

// An alarm is no reason to give the connection up, though nothing is confirmed over it.
func TestAnAlarmCostsNoConnection(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	// long enough for RabbitMQ to tell of the alarm before the message's time is over
	publisher := queue.NewPublisher(n.queue, t.Name(), 10*time.Second, slog.New(slog.DiscardHandler))
	running, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { publisher.Run(running) })
	t.Cleanup(func() { stop(); run.Wait() })
	eventually(t, func() bool { return publisher.Ready() == nil }, "the publisher is connected")
	require.NoError(t, n.Ctl(t.Context(), "set_vm_memory_high_watermark", "0"))
	require.ErrorIs(t, publisher.Publish(t.Context(), contract.Message{ID: "during", Event: contract.Event{Name: "name"}}), queue.ErrUnconfirmed)
	require.ErrorContains(t, publisher.Ready(), "alarm")
	require.NoError(t, n.Ctl(t.Context(), "set_vm_memory_high_watermark", "0.6"))
	eventually(t, func() bool { return publisher.Ready() == nil }, "the publisher is back")
	require.EqualValues(t, 1, publisher.Connects())
}

// publishers counts this process's goroutines that are in a publisher or were
// started by one.
func publishers() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(stack, "contract/queue.(*Publisher)") || strings.Contains(stack, "contract/queue.(*session)") {
			n++
		}
	}
	return n
}

// requireNoPublish wants a service in which no request is stuck.
func requireNoPublish(t *testing.T, stacks []string) {
	t.Helper()
	for _, stack := range stacks {
		require.NotContains(t, stack, "(*Publisher).Publish(")
	}
	require.Less(t, len(stacks), 60, "goroutines of a service at rest")
}

// What happens to a connection at any moment of a publish. The client sends its
// event again under the same key: in the end it is one.
func TestRabbitMQConnection(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	for _, c := range []struct {
		name string
		// fail makes the connection fail. What it returns is done when the event
		// has been sent, and not yet answered.
		fail    func(t *testing.T, l *link) (meanwhile func())
		arrives bool // the event is in the queue although it was answered with 503
		content string
	}{
		{name: "is cut before the publish", fail: func(_ *testing.T, l *link) func() {
			l.cut()
			return nil
		}},
		{name: "is cut in the middle of the message", content: strings.Repeat("x", 60<<10), fail: func(t *testing.T, l *link) func() {
			l.add(t, up, "limit_data", map[string]int{"bytes": 10_000})
			return nil
		}},
		{name: "is reset when the message is sent", fail: func(t *testing.T, l *link) func() {
			l.add(t, up, "reset_peer", map[string]int{"timeout": 0})
			return nil
		}},
		{name: "is cut between publish and confirm", arrives: true, fail: func(t *testing.T, l *link) func() {
			l.hold(t, down, "")
			return l.cut
		}},
		{name: "stalls towards RabbitMQ", fail: func(t *testing.T, l *link) func() {
			l.hold(t, up, "")
			return nil
		}},
		{name: "stalls between publish and confirm", arrives: true, fail: func(t *testing.T, l *link) func() {
			l.hold(t, down, "")
			return nil
		}},
		{name: "stalls in both directions", fail: func(t *testing.T, l *link) func() {
			l.stall(t)
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			q, _ := servers(t)
			linked, l := brokerLink(t, q)
			app := startApp(t, linked, noDatabase(), "CONFIRM_TIMEOUT="+timeout.String())
			app.sendUntilAccepted(t, "before")
			meanwhile := c.fail(t, l)

			answered := make(chan answer, 1)
			go func() {
				a, err := app.send(t.Context(), "the-event", "name", c.content)
				if err != nil {
					a.detail = err.Error()
				}
				answered <- a
			}()
			if c.arrives {
				requireQueues(t, q, 2, 0)
			}
			if meanwhile != nil {
				meanwhile()
			}
			a := <-answered
			require.Equal(t, http.StatusServiceUnavailable, a.status, "%+v", a)
			require.Equal(t, "the-event", a.id)
			require.Less(t, a.took, timeout+slack)
			if c.arrives {
				require.Contains(t, a.detail, "may have been accepted")
			}

			l.release()
			if !l.proxy.Enabled {
				l.mend(t)
			}
			app.sendUntilAccepted(t, "the-event")
			eventually(t, func() bool { return app.answers("/healthz") == http.StatusOK }, "it is well")
			found := drain(t, q)
			require.Contains(t, found, "the-event")
			delete(found, "the-event")
			require.Contains(t, found, "before") // twice, if its first confirm was late
			delete(found, "before")
			require.Empty(t, found)
		})
	}
}

// A connection on which nothing comes any more is given up after three missed
// heartbeats, and a new one made.
func TestRabbitMQFallsSilent(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	linked, l := brokerLink(t, q)
	app := startApp(t, linked, noDatabase(), "CONFIRM_TIMEOUT=1s")
	app.sendUntilAccepted(t, "before")
	const noticed = "no connection to RabbitMQ, will try again"
	before := app.logs(noticed)
	l.stall(t)
	began := time.Now()
	eventually(t, func() bool { return app.logs(noticed) > before }, "it notices")
	t.Logf("noticed after %s", time.Since(began))
	require.Less(t, time.Since(began), 25*time.Second)
	eventually(t, func() bool {
		return app.mustSend(t, "meanwhile", http.StatusServiceUnavailable).took < 500*time.Millisecond
	}, "it need not wait for the timeout now")
	l.release()
	app.sendUntilAccepted(t, "after")
	require.Contains(t, drain(t, q), "after")
}

// The connection stays open, also RabbitMQ's heartbeats may go on, and nothing is confirmed:
// as on a node that was cut off from the others. A new connection, to another node, is made
// without waiting for missed heartbeats.
func TestRabbitMQConfirmsNothing(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	linked, l := brokerLink(t, q)
	app := startApp(t, linked, noDatabase(), "CONFIRM_TIMEOUT=1s")
	app.sendUntilAccepted(t, "before")
	l.add(t, down, holdType, map[string]any{"Match": acknowledging, "Once": true, "Deaf": true})
	require.Contains(t, app.mustSend(t, "after", http.StatusServiceUnavailable).detail, "may have been accepted")
	app.sendUntilAccepted(t, "after")
	require.True(t, app.logged("no message was confirmed within 1s"))
	found := drain(t, q) // "after" twice or more, under one id
	require.Len(t, found, 2)
	require.Contains(t, found, "after")
}

// RabbitMQ stops reading without a word, and more is sent than fits on the way.
func TestRabbitMQStopsReading(t *testing.T) {
	t.Parallel()
	const writeTimeout = 5 * time.Second // of the services
	q, _ := servers(t)
	linked, l := brokerLink(t, q)
	app := startApp(t, linked, noDatabase(), "CONFIRM_TIMEOUT=1s")
	app.sendUntilAccepted(t, "before")
	l.add(t, up, holdType, map[string]any{"Full": true})
	big := strings.Repeat("x", 60<<10)
	var clients errgroup.Group
	clients.SetLimit(100) // fewer than are served at a time
	var slowest longest
	for i := range 400 { // 24 MB, where a connection of this machine has some 10
		clients.Go(func() error {
			a, err := app.send(t.Context(), fmt.Sprint("id-", i), "name", big)
			if err != nil || a.status != http.StatusServiceUnavailable || a.id == "" {
				t.Errorf("%+v %v, not 503 with an id", a, err)
			}
			slowest.note(a.took)
			return nil
		})
	}
	_ = clients.Wait()
	t.Logf("the slowest answer took %s", slowest.took)
	require.Less(t, slowest.took, writeTimeout+2*slack)
	l.release()
	app.sendUntilAccepted(t, "after")
}

func TestTheQueueIsDeletedWhileTheServiceRuns(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	app := startApp(t, q, noDatabase())
	app.sendUntilAccepted(t, "before")
	files := app.openFiles(t)
	ch := contracttest.Channel(t, q)
	for _, name := range []string{q.Queue, q.DeadQueue()} {
		_, err := ch.QueueDelete(name, false, false, false)
		require.NoError(t, err)
	}
	// The first one is refused, unless the page has looked meanwhile: its connection,
	// too, declares the queues when they are gone.
	a, err := app.send(t.Context(), "the-event", "name", "content")
	require.NoError(t, err)
	if a.status != http.StatusAccepted {
		require.Equal(t, http.StatusServiceUnavailable, a.status)
		require.Contains(t, a.detail, "was not accepted")
		app.sendUntilAccepted(t, "the-event")
	}
	requireQueues(t, q, 1, 0)
	require.Equal(t, map[string]int{"the-event": 1}, drain(t, q))

	// 202 is for what is in the queue, however many send while it goes away
	for round := range 20 {
		_, err := ch.QueueDelete(q.Queue, false, false, false)
		require.NoError(t, err)
		var accepted sync.Map
		var wait sync.WaitGroup
		for i := range 32 {
			wait.Go(func() {
				if a, err := app.send(t.Context(), fmt.Sprint(round, "-", i), "name", "content"); err == nil && a.status == http.StatusAccepted {
					accepted.Store(a.id, true)
				}
			})
		}
		wait.Wait()
		app.sendUntilAccepted(t, fmt.Sprint(round))
		found := drain(t, q)
		accepted.Range(func(id, _ any) bool {
			require.Contains(t, found, id)
			return true
		})
	}
	http.DefaultClient.CloseIdleConnections()
	// a few are for the page, which looks by itself
	eventually(t, func() bool { return app.openFiles(t) <= files+5 }, "no connection is left of the sessions that ended")
}

// How to change over from a queue that an earlier version has declared, as
// docs/operations.md says: nothing is sent meanwhile, the earlier version's workers empty
// the queue, it is deleted, and the new version declares it.
func TestTheQueueOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	q, db := contracttest.RabbitMQ(t), contracttest.MongoDB(t)
	ch := contracttest.Channel(t, q)
	for name, arguments := range map[string]amqp.Table{ // without the delayed retry, which 4.3 compares, and with another limit
		q.DeadQueue(): {amqp.QueueTypeArg: amqp.QueueTypeQuorum, "x-delivery-limit": 1_000_000_000},
		q.Queue: {amqp.QueueTypeArg: amqp.QueueTypeQuorum, "x-delivery-limit": 9, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": q.DeadQueue(),
			"x-dead-letter-strategy": "at-least-once", amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish},
	} {
		_, err := ch.QueueDeclare(name, true, false, false, false, arguments)
		require.NoError(t, err)
	}
	publish(t, q, event("old-1"), event("old-2"))

	app := startApp(t, q, db)
	app.mustSend(t, "", http.StatusServiceUnavailable)
	eventually(t, func() bool { return app.logged("the queue exists with other arguments") }, "the log says so")
	require.Equal(t, 1, startJob(t, "job", q, db, "RETRY_TIMEOUT=5s").exit(t), "and no message is touched")

	store, err := records.Open(db, t.Name())
	require.NoError(t, err)
	defer store.Close()
	for range 2 { // as the earlier version's workers do
		d, ok, err := ch.Get(q.Queue, false)
		require.NoError(t, err)
		require.True(t, ok)
		require.NoError(t, store.Begin(t.Context(), contract.Message{ID: d.MessageId, Event: contract.Event{Name: "a"}}, records.Run{Job: "old", Attempt: 1}))
		require.NoError(t, store.Finish(t.Context(), d.MessageId))
		require.NoError(t, d.Ack(false))
	}
	contracttest.Waiting(t, ch, q.Queue, 0)
	deleted, err := ch.QueueDelete(q.Queue, false, false, false)
	require.NoError(t, err)
	require.Zero(t, deleted, "no message is lost with it")
	app.sendUntilAccepted(t, "after")
	require.Zero(t, startJob(t, "job", q, db).exit(t))
	found := all(t, db)
	require.Len(t, found, 3)
	for _, r := range found {
		require.Equal(t, records.Done, r.Status)
	}
}

func TestTheQueueWasDeclaredOtherwise(t *testing.T) {
	t.Parallel()
	q, db := contracttest.RabbitMQ(t), contracttest.MongoDB(t)
	ch := contracttest.Channel(t, q)
	_, err := ch.QueueDeclare(q.Queue, true, false, false, false, nil)
	require.NoError(t, err)

	app := startApp(t, q, db)
	a := app.mustSend(t, "", http.StatusServiceUnavailable)
	require.NotContains(t, a.detail, q.Queue, "the caller need not know")
	require.Equal(t, http.StatusServiceUnavailable, app.answers("/readyz"))
	eventually(t, func() bool { return app.logged("the queue exists with other arguments") }, "the log says so")

	j := startJob(t, "job", q, db, "RETRY_TIMEOUT=1h", "CLAIM_TIMEOUT=1h")
	eventually(t, func() bool {
		return j.logged("the queue exists with other arguments") && j.logged("set RABBITMQ_QUEUE")
	}, "the Job says so")

	_, err = ch.QueueDelete(q.Queue, false, false, false)
	require.NoError(t, err)
	app.sendUntilAccepted(t, "after")
	if j.exit(t) != 0 { // it has asked for a message while the queue was being deleted
		require.Contains(t, j.Tail(1), "get from "+q.Queue)
		require.Zero(t, startJob(t, "job", q, db).exit(t))
	}
	requireDone(t, db, "job", 1)
}

func TestRabbitMQIsNotThereAtTheStart(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	linked, l := brokerLink(t, q)
	l.cut()
	app := startApp(t, linked, db)
	require.Equal(t, http.StatusServiceUnavailable, app.answers("/readyz"))
	a := app.mustSend(t, "the-event", http.StatusServiceUnavailable)
	require.Equal(t, "the-event", a.id)

	// a Job that does not wait long enough, and one that does
	require.Equal(t, 1, startJob(t, "job", linked, db, "RETRY_TIMEOUT=300ms").exit(t))
	j := startJob(t, "job", linked, db, "CLAIM_TIMEOUT=1m")
	eventually(t, func() bool { return j.logged("will try again") }, "the Job tries")

	l.mend(t)
	app.eventually(t, "/readyz", http.StatusOK)
	app.sendUntilAccepted(t, "the-event")
	require.Zero(t, j.exit(t))
	requireDone(t, db, "job", 1)
}

func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	_, db := servers(t)
	right := n.queue
	n.queue.Password = "not this one"
	app := startApp(t, n.queue, db)
	eventually(t, func() bool { return app.logged("username or password not allowed") }, "the log says so")
	require.False(t, app.logged(n.queue.Password))
	require.Equal(t, http.StatusServiceUnavailable, app.answers("/readyz"))
	app.mustSend(t, "the-event", http.StatusServiceUnavailable)
	j := startJob(t, "job", n.queue, db, "RETRY_TIMEOUT=30s") // RabbitMQ takes 3 s for each refusal
	require.Equal(t, 1, j.exit(t))
	require.Contains(t, j.Tail(1), "username or password not allowed")

	require.NoError(t, n.Ctl(t.Context(), "change_password", right.User, n.queue.Password))
	app.eventually(t, "/readyz", http.StatusOK)
	app.sendUntilAccepted(t, "the-event")
	require.Zero(t, startJob(t, "job", n.queue, db).exit(t))
	requireDone(t, db, "job", 1)
}

// A message without an id has to be published again, which RabbitMQ does not take in an
// alarm. The Job must not wait for its end.
func TestAMessageWithoutAnIDInAnAlarm(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	db := contracttest.MongoDB(t)
	contracttest.Consumer(t, n.queue)
	publish(t, n.queue, amqp.Publishing{Body: []byte(`{"name":"a"}`)})
	require.NoError(t, n.Ctl(t.Context(), "set_vm_memory_high_watermark", "0"))
	j := startJob(t, "job", n.queue, db, "RETRY_TIMEOUT=1h")
	require.Equal(t, 1, j.exit(t))
	require.Contains(t, j.Tail(1), "give a message an id: RabbitMQ did not confirm the message: no answer within 5s")
	require.NoError(t, n.Ctl(t.Context(), "set_vm_memory_high_watermark", "0.6"))
	require.Zero(t, startJob(t, "job", n.queue, db, "CLAIM_TIMEOUT=1m").exit(t))
	require.Equal(t, records.Done, all(t, db)[0].Status)
}

// RabbitMQ counts no messages in a queue whose leader is busy or away. That must not look
// like a queue without dead letters.
func TestTheDeadLettersAreNotKnown(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	app := startApp(t, n.queue, noDatabase())
	app.eventually(t, "/readyz", http.StatusOK)
	publishTo(t, n.queue, n.queue.DeadQueue(), event("dead"))
	app.eventually(t, "/dead-letters", http.StatusOK)
	leader := func(do string) {
		require.NoError(t, n.Ctl(t.Context(), "eval", fmt.Sprintf(`sys:%s(list_to_atom("%%2F_%s")).`, do, n.queue.DeadQueue())))
	}
	redrive := func() int {
		response, err := http.Post("http://"+app.addr+"/dead-letters/redrive?id=dead", "", nil)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	leader("suspend")
	require.Equal(t, http.StatusServiceUnavailable, app.answers("/dead-letters"))
	require.Equal(t, http.StatusServiceUnavailable, redrive())
	leader("resume")
	eventually(t, func() bool { return redrive() == http.StatusOK }, "it is sent back")
	requireQueues(t, n.queue, 1, 0)
}

// One that was not counted is found by asking for it. It stays where it is.
func TestADeadLetterThatWasNotCounted(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	ch := contracttest.Channel(t, q)
	require.NoError(t, ch.Confirm(false))
	linked, l := brokerLink(t, q)
	d := queue.NewDeadLetters(linked, t.Name())
	t.Cleanup(d.Close)
	asked := l.hold(t, up, claiming)
	listed := make(chan []queue.DeadLetter, 1)
	go func() {
		dead, err := d.List(t.Context(), 10)
		if err != nil {
			t.Error(err)
		}
		listed <- dead
	}()
	eventually(t, asked.held.Load, "it asks for one")
	confirmation, err := ch.PublishWithDeferredConfirm("", q.DeadQueue(), true, false, event("late"))
	require.NoError(t, err)
	require.True(t, confirmation.Wait())
	l.release()
	require.Len(t, <-listed, 1)
	requireQueues(t, q, 0, 1)
}

// The library's calls know no context, and RabbitMQ may be silent but for its heartbeats.
func TestAVisitEndsSoonAfterItsContext(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	publishTo(t, q, q.DeadQueue(), event("dead"))
	linked, l := brokerLink(t, q)
	d := queue.NewDeadLetters(linked, t.Name())
	t.Cleanup(d.Close)
	letter := l.add(t, down, holdType, map[string]any{"Match": showing, "Alive": true}).Toxic.(*hold)
	ctx, hangUp := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := d.List(ctx, 10)
		ended <- err
	}()
	eventually(t, letter.held.Load, "a letter is on its way")
	hangUp()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, queue.ErrUnavailable)
	case <-time.After(patience):
		require.FailNow(t, "it does not end")
	}
}

// A policy may bound a queue, which then refuses what comes.
func TestAQueueIsFull(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	db := contracttest.MongoDB(t)
	bound := func(t *testing.T, name, policy string) {
		pattern := "^" + strings.ReplaceAll(name, ".", "\\.") + "$"
		require.NoError(t, n.Ctl(t.Context(), "set_policy", t.Name(), pattern, policy, "--apply-to", "queues"))
	}

	t.Run("of messages: no event is answered with 202 that is not in it", func(t *testing.T) {
		app := startApp(t, n.queue, noDatabase(), "CONFIRM_TIMEOUT=1m")
		app.sendUntilAccepted(t, "first")
		bound(t, n.queue.Queue, `{"max-length":10}`)
		accepted := map[string]bool{}
		eventually(t, func() bool { // RabbitMQ takes some more than the limit
			a, err := app.send(t.Context(), "", "name", "content")
			if err == nil && a.status == http.StatusAccepted {
				accepted[a.id] = true
			}
			return err == nil && a.status == http.StatusServiceUnavailable && strings.Contains(a.detail, "was not accepted")
		}, "one is refused")
		found := drain(t, n.queue)
		require.GreaterOrEqual(t, len(found), 10)
		for id := range accepted {
			require.Contains(t, found, id)
		}
		app.sendUntilAccepted(t, "after")
	})

	t.Run("of dead letters: a message and a letter stay where they are", func(t *testing.T) {
		q := n.queue
		q.Queue = "other"
		app := startApp(t, q, db)
		app.eventually(t, "/readyz", http.StatusOK)
		dead := 5 // a look takes one, and without it the queue must be full, too
		publishTo(t, q, q.DeadQueue(), slices.Repeat([]amqp.Publishing{event("dead")}, dead)...)
		bound(t, q.DeadQueue(), `{"max-length":1,"overflow":"reject-publish"}`)
		ch := contracttest.Channel(t, q)
		require.NoError(t, ch.Confirm(false))
		eventually(t, func() bool {
			confirmation, err := ch.PublishWithDeferredConfirm("", q.DeadQueue(), true, false, event("dead"))
			require.NoError(t, err)
			if confirmation.Wait() {
				dead++
				return false
			}
			return true
		}, "it is full")
		publish(t, q, amqp.Publishing{MessageId: "odd", Body: []byte("not JSON")})
		j := startJob(t, "job", q, db)
		require.Equal(t, 1, j.exit(t))
		require.Contains(t, j.Tail(1), "did not confirm")
		requireQueues(t, q, 1, dead)
		require.Equal(t, http.StatusServiceUnavailable, app.answers("/dead-letters"))
		requireQueues(t, q, 1, dead)
	})
}

// noDatabase is where no database is, for tests that need none.
func noDatabase() records.Config {
	c := records.Config{Port: "1", DB: "db", Collection: "c", AuthSource: "admin"}
	c.Host = "127.0.0.1"
	return c
}
