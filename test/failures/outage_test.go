package failures_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/scaler"
)

// MongoDB is away while many messages wait and KEDA's stand-in goes on starting
// Jobs. None may end as a dead letter, and there must be no storm of Jobs.
func TestMongoDBOutageWithMessagesWaiting(t *testing.T) {
	t.Parallel()
	outage{messages: 100, away: 12 * time.Second, retry: 5 * time.Second, interval: 200 * time.Millisecond, patience: patience}.run(t)
}

type outage struct {
	messages              int
	away, retry, interval time.Duration
	patience              time.Duration
}

func (o outage) run(t *testing.T) {
	q, db := servers(t)
	linked, l := databaseLink(t, db)
	job, err := scaler.Load("../../deploy")
	require.NoError(t, err)
	job.Queue, job.Interval, job.ProbePeriod = q.Queue, o.interval, o.interval
	s, err := scaler.New(scaler.Config{
		Job: job, Processor: program("processor-job"), Dir: t.TempDir(),
		Env: map[string]string{
			"RABBITMQ_HOST": q.Host, "RABBITMQ_PORT": string(q.Port), "RABBITMQ_USER": q.User, "RABBITMQ_PASSWORD": q.Password, "RABBITMQ_QUEUE": q.Queue, "RABBITMQ_RETRY_MIN": q.RetryMin.String(),
			"MONGODB_HOST": linked.Host, "MONGODB_PORT": string(linked.Port), "MONGODB_USER": db.User, "MONGODB_PASSWORD": db.Password,
			"MONGODB_COLLECTION": db.Collection, "PROCESSING_TIME": "50ms", "RETRY_TIMEOUT": o.retry.String(),
		},
		Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	running, stop := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { s.Run(running) })
	end := sync.OnceFunc(func() { stop(); wait.Wait() })
	t.Cleanup(end)

	// some are under way when it begins
	messages := make([]amqp.Publishing, o.messages)
	for i := range messages {
		messages[i] = event(fmt.Sprint("id-", i))
	}
	publish(t, q, messages...)
	eventually(t, func() bool { return done(db) >= 5 }, "they are being processed")
	l.cut()
	before := s.Totals()
	began := time.Now()
	over := time.NewTimer(o.away)
	select {
	case <-over.C:
	case <-t.Context().Done():
	}
	during := s.Totals()
	l.mend(t)
	away := time.Since(began)

	ch := contracttest.Channel(t, q)
	mended := time.Now()
	require.Eventually(t, func() bool {
		state, err := ch.QueueDeclarePassive(q.Queue, true, false, false, false, nil)
		return err == nil && state.Messages == 0 && done(db) == o.messages
	}, o.patience, o.interval, "all are processed")
	drained := time.Since(mended)
	end()
	requireQueues(t, q, 0, 0)

	found := all(t, db)
	require.Len(t, found, o.messages)
	attempts := map[int]int{}
	for _, r := range found {
		require.Equal(t, records.Done, r.Status)
		attempts[r.Attempts]++
	}
	// those that had been claimed when it began, and no others
	limit := int(job.Strategy.MaxReplicas)
	require.GreaterOrEqual(t, attempts[1], o.messages-limit, "%v", attempts)
	jobs := during.Started - before.Started
	require.LessOrEqual(t, jobs, (int(away/o.retry)+1)*limit)
	t.Logf("%d messages, MongoDB away for %s with RETRY_TIMEOUT=%s: %d Jobs started and %d failed meanwhile; none dead; records by attempts %v; all done %s after it was back; %+v in all",
		o.messages, away.Round(time.Second), o.retry, jobs, during.Failed-before.Failed, attempts, drained.Round(time.Second), s.Totals())
}

func done(db records.Config) (n int) {
	found, _ := read(db) // none that can be read is none
	for _, r := range found {
		if r.Status == records.Done {
			n++
		}
	}
	return n
}
