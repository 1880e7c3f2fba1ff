package failures_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/records"
)

// A Job ends at a certain moment, by a signal. Its message must be back at once,
// and the next Job must complete the same record.
func TestJobEndsAtAnyMoment(t *testing.T) {
	t.Parallel()
	type links struct{ broker, database *link }
	for _, moment := range []struct {
		name    string
		prepare func(t *testing.T, l links) (reached func(records.Status) bool)
		work    string
		found   records.Status // the record that the first Job leaves
	}{
		{
			name: "before it stores",
			prepare: func(t *testing.T, l links) func(records.Status) bool {
				h := l.database.hold(t, up, storing)
				return func(records.Status) bool { return h.held.Load() }
			},
		},
		{
			name: "after it stored and before it knows",
			prepare: func(t *testing.T, l links) func(records.Status) bool {
				h := l.database.hold(t, down, stored)
				return func(records.Status) bool { return h.held.Load() }
			},
			found: records.Processing,
		},
		{
			name: "while it works",
			prepare: func(*testing.T, links) func(records.Status) bool {
				return func(s records.Status) bool { return s == records.Processing }
			},
			work:  "1h",
			found: records.Processing,
		},
		{
			name: "after the work and before it marks it as done",
			prepare: func(t *testing.T, l links) func(records.Status) bool {
				h := l.database.hold(t, up, marking)
				return func(records.Status) bool { return h.held.Load() }
			},
			found: records.Processing,
		},
		{
			name: "after it is done and before it knows",
			prepare: func(t *testing.T, l links) func(records.Status) bool {
				h := l.database.hold(t, up, marking)
				var answers *hold
				return func(s records.Status) bool {
					if h.held.Load() && answers == nil {
						answers = l.database.hold(t, down, "")
						l.database.drop(t, h)
					}
					return s == records.Done
				}
			},
			found: records.Done,
		},
		{
			name: "after it is done and before it acknowledges",
			prepare: func(t *testing.T, l links) func(records.Status) bool {
				h := l.broker.hold(t, up, acknowledging)
				return func(s records.Status) bool { return s == records.Done && h.held.Load() }
			},
			found: records.Done,
		},
	} {
		for name, signal := range map[string]syscall.Signal{"SIGKILL": syscall.SIGKILL, "SIGTERM": syscall.SIGTERM} {
			t.Run(name+" "+moment.name, func(t *testing.T) {
				t.Parallel()
				q, db := servers(t)
				publish(t, q, event("id-1"))
				linkedQ, broker := brokerLink(t, q)
				linkedDB, database := databaseLink(t, db)
				reached := moment.prepare(t, links{broker, database})
				work := moment.work
				if work == "" {
					work = "0s"
				}
				j := startJob(t, "first", linkedQ, linkedDB, "PROCESSING_TIME="+work)
				eventually(t, func() bool { return reached(status(db)) }, "the moment comes")

				j.signal(t, signal)
				if signal == syscall.SIGKILL {
					require.Equal(t, -1, j.exit(t))
				} else {
					require.Equal(t, 1, j.exit(t))
					require.True(t, strings.Contains(j.Tail(1), "given back") || strings.Contains(j.Tail(1), "close the connection"), j.Tail(1))
				}
				requireStatus(t, db, moment.found)
				requireQueues(t, q, 1, 0)

				require.Zero(t, startJob(t, "second", q, db).exit(t))
				if moment.found == records.Done {
					requireDone(t, db, "first", 1) // the second has only acknowledged
				} else {
					attempts := 2
					if signal == syscall.SIGTERM {
						attempts = secondAttempt(t, q)
					}
					requireDone(t, db, "second", attempts)
				}
				requireQueues(t, q, 0, 0)
			})
		}
	}
}

// Kubernetes ends a Job at its deadline, or when its node is drained: SIGTERM,
// and SIGKILL after the grace period.
func TestJobAtItsDeadline(t *testing.T) {
	t.Parallel()
	t.Run("it obeys", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		j := startJob(t, "first", q, db, "PROCESSING_TIME=1h")
		requireStatus(t, db, records.Processing)
		j.Stop(patience)
		require.Equal(t, 1, j.exit(t))
		requireQueues(t, q, 1, 0)
	})
	t.Run("it is frozen", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		j := startJob(t, "first", q, db, "PROCESSING_TIME=1h")
		requireStatus(t, db, records.Processing)
		j.signal(t, syscall.SIGSTOP)
		j.Stop(time.Second)
		require.Equal(t, -1, j.exit(t))
		requireQueues(t, q, 1, 0)
		require.Zero(t, startJob(t, "second", q, db).exit(t))
		requireDone(t, db, "second", 2)
	})
	t.Run("it waits for its servers", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		linkedQ, broker := brokerLink(t, q)
		linkedDB, database := databaseLink(t, db)
		broker.hold(t, down, "")
		database.hold(t, down, "")
		j := startJob(t, "first", linkedQ, linkedDB)
		eventually(t, func() bool { return j.answers("/readyz") != 0 }, "it is up")
		j.Stop(patience)
		require.Equal(t, 1, j.exit(t))
		require.Zero(t, startJob(t, "second", q, db).exit(t))
		requireDone(t, db, "second", 1) // the first has not touched it
	})
}

// A node that is cut off from the others keeps its connections, and answers nothing.
func TestRabbitMQDoesNotAnswerAJob(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	linked, l := brokerLink(t, q)
	publish(t, q, event("id-1"))
	l.hold(t, down, delivering)
	first := startJob(t, "first", linked, db)
	require.Equal(t, 1, first.exit(t))
	require.Contains(t, first.Tail(1), "no answer within 5s")
	require.Zero(t, startJob(t, "second", q, db, "CLAIM_TIMEOUT=1m").exit(t))
	requireDone(t, db, "second", 2)
	requireQueues(t, q, 0, 0)
}

func TestRabbitMQDoesNotAnswerADeclaration(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	linked, l := brokerLink(t, q)
	publish(t, q, event("id-1"))
	l.hold(t, down, confirming)
	first := startJob(t, "first", linked, db, "RETRY_TIMEOUT=30s")
	require.Equal(t, 1, first.exit(t))
	require.Contains(t, first.Tail(1), "no answer within 5s") // else missed heartbeats would end it
	require.Zero(t, startJob(t, "second", q, db).exit(t))
	requireDone(t, db, "second", 1)
}

// RabbitMQ takes a Job for dead that is not, and gives its message to another.
func TestTwoJobsWithOneMessage(t *testing.T) {
	t.Parallel()
	// A Job that is waiting for a message gets it when the broker has missed
	// three of the first one's heartbeats.
	const waits = "CLAIM_TIMEOUT=1m"

	t.Run("the first still works when the second is done", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		linked, broker := brokerLink(t, q)
		first := startJob(t, "first", linked, db, "PROCESSING_TIME=1h")
		requireStatus(t, db, records.Processing)
		broker.stall(t)
		require.Zero(t, startJob(t, "second", q, db, waits).exit(t))
		requireDone(t, db, "second", 2)
		broker.release()
		require.Equal(t, 1, first.exit(t))
		require.Contains(t, first.Tail(1), "the connection to RabbitMQ was lost")
		requireDone(t, db, "second", 2)
		requireQueues(t, q, 0, 0)
	})
	t.Run("the first is done before the second begins", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		linked, broker := brokerLink(t, q)
		broker.hold(t, up, acknowledging)
		first := startJob(t, "first", linked, db)
		// only its acknowledgement is missing, and then all that comes after it
		require.Equal(t, 1, first.exit(t))
		require.Contains(t, first.Tail(1), "close the connection to RabbitMQ")
		second := startJob(t, "second", q, db, waits)
		require.Zero(t, second.exit(t))
		require.True(t, second.logged("only acknowledging it"))
		requireDone(t, db, "first", 1)
		requireQueues(t, q, 0, 0)
	})
	t.Run("both work, and the first is done in the middle of the second", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		linked, broker := brokerLink(t, q)
		linkedDB, database := databaseLink(t, db)
		marked := database.hold(t, up, marking)
		first := startJob(t, "first", linked, linkedDB)
		eventually(t, marked.held.Load, "the first has worked")
		broker.stall(t)
		first.signal(t, syscall.SIGSTOP) // it does not notice what has happened
		second := startJob(t, "second", q, db, waits, "PROCESSING_TIME=3s")
		eventually(t, second.claimed, "the second has the message")
		eventually(t, func() bool { return second.logged("stored, working") }, "the second works")
		database.release()
		requireStatus(t, db, records.Done)
		require.Zero(t, second.exit(t))
		requireDone(t, db, "second", 2)
		first.signal(t, syscall.SIGCONT)
		broker.release()
		require.Equal(t, 1, first.exit(t))
		requireDone(t, db, "second", 2)
		requireQueues(t, q, 0, 0)
	})
	t.Run("what the first stores arrives when the second is done", func(t *testing.T) {
		t.Parallel()
		q, db := servers(t)
		publish(t, q, event("id-1"))
		linked, broker := brokerLink(t, q)
		linkedDB, database := databaseLink(t, db)
		storing := database.hold(t, up, storing)
		first := startJob(t, "first", linked, linkedDB, "PROCESSING_TIME=1h")
		eventually(t, storing.held.Load, "the first stores")
		broker.stall(t)
		first.signal(t, syscall.SIGSTOP)
		require.Zero(t, startJob(t, "second", q, db, waits).exit(t))
		requireDone(t, db, "second", 2)
		database.release()
		broker.release()
		first.signal(t, syscall.SIGCONT)
		require.Equal(t, 1, first.exit(t))
		requireDone(t, db, "second", 2)
		requireQueues(t, q, 0, 0)
	})
}
