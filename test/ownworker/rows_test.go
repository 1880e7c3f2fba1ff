package ownworker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// patience is how long a test waits for what must happen, on a busy machine.
const patience = 2 * time.Minute

// worker is the page's worker with a queue and collections of its own.
type worker struct {
	program string
	q       queue.Config
	db      records.Config
	ch      *amqp.Channel
	send    *queue.Publisher
}

func newWorker(t *testing.T, program string, maxAttempts int) *worker {
	t.Helper()
	w := &worker{program: program, q: contracttest.RabbitMQ(t), db: contracttest.MongoDB(t)}
	w.q.MaxAttempts = maxAttempts
	w.send = queue.NewPublisher(w.q, t.Name(), patience, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); w.send.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	require.Eventually(t, func() bool { return w.send.Ready() == nil }, patience, contracttest.Tick)
	w.ch = contracttest.Channel(t, w.q)
	return w
}

func (w *worker) publish(t *testing.T, id, content string) {
	t.Helper()
	m := contract.Message{ID: id, Event: contract.Event{Name: "try", Content: content}, SentAt: time.Now()}
	require.NoError(t, w.send.Publish(t.Context(), m))
}

func (w *worker) results() string { return "results-" + w.db.Collection }

// start runs the program as a Job does.
func (w *worker) start(t *testing.T, out io.Writer, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(w.program)
	cmd.Env = append(os.Environ(), "POD_NAME=pod", "PROBE_ADDR=127.0.0.1:0", "CLAIM_TIMEOUT=20s", "RESULTS="+w.results(),
		"RABBITMQ_QUEUE="+w.q.Queue, "RABBITMQ_RETRY_MIN="+w.q.RetryMin.String(), "RABBITMQ_MAX_ATTEMPTS="+strconv.Itoa(w.q.MaxAttempts),
		"MONGODB_COLLECTION="+w.db.Collection)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func exitCode(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	err := cmd.Wait()
	if exit := new(exec.ExitError); !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode()
}

// run runs a Job to its end.
func (w *worker) run(t *testing.T, env ...string) (code int, log string) {
	t.Helper()
	var out bytes.Buffer
	code = exitCode(t, w.start(t, &out, env...))
	t.Logf("exit code %d\n%s", code, out.String())
	return code, out.String()
}

func (w *worker) records(t *testing.T) (all []records.Record) {
	t.Helper()
	s, err := records.Open(w.db, t.Name())
	require.NoError(t, err)
	defer s.Close()
	for r, err := range s.List(t.Context(), records.Query{}) {
		require.NoError(t, err)
		all = append(all, r)
	}
	return all
}

func (w *worker) record(t *testing.T) records.Record {
	t.Helper()
	all := w.records(t)
	require.Len(t, all, 1)
	return all[0]
}

type result struct {
	ID    string `bson:"_id"`
	Name  string
	Words int
}

func (w *worker) stored(t *testing.T) (all []result) {
	t.Helper()
	client, err := records.Connect(w.db, t.Name())
	require.NoError(t, err)
	defer client.Disconnect(context.WithoutCancel(t.Context()))
	found, err := client.Database(w.db.DB).Collection(w.results()).Find(t.Context(), bson.D{})
	require.NoError(t, err)
	require.NoError(t, found.All(t.Context(), &all))
	return all
}

// deadLetter takes the one dead letter and returns its reason.
func (w *worker) deadLetter(t *testing.T) (reason string, attempts int64) {
	t.Helper()
	contracttest.Waiting(t, w.ch, w.q.DeadQueue(), 1)
	d, ok, err := w.ch.Get(w.q.DeadQueue(), true)
	require.NoError(t, err)
	require.True(t, ok)
	reason, _ = d.Headers["dead-letter-reason"].(string)
	attempts, _ = d.Headers["dead-letter-attempts"].(int64)
	return reason, attempts
}

// empty checks that a further Job finds nothing to do.
func (w *worker) empty(t *testing.T) {
	t.Helper()
	contracttest.Waiting(t, w.ch, w.q.Queue, 0)
	code, log := w.run(t, "CLAIM_TIMEOUT=1s")
	require.Zero(t, code)
	require.Contains(t, log, "the queue is empty")
}

// testRows checks the page's table: what becomes of the message and its record.
func testRows(t *testing.T, program string) {
	t.Run("returns nil", func(t *testing.T) {
		t.Parallel()
		w := newWorker(t, program, 5)
		testGood(t, w)
	})
	for name, row := range map[string]struct {
		content, reason, logged string
		maxAttempts, attempts   int
		env                     []string
	}{
		"returns an error":           {"bad", "the dictionary is not available", "", 5, 5, nil},
		"returns permanent":          {"never", "not a text", "", 5, 1, nil},
		"returns permanent by limit": {"two words", "2 words, at most 1 are allowed", "", 5, 1, []string{"MAX_WORDS=1"}},
		"takes too long":             {"slow", "took longer than 200ms", "", 2, 2, []string{"WORK_TIMEOUT=200ms"}},
		"panics":                     {"panic", "work panicked: no such word", "work.go:", 2, 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorker(t, program, row.maxAttempts)
			w.publish(t, "id", row.content)
			for attempt := 1; attempt <= row.attempts; attempt++ {
				code, log := w.run(t, row.env...)
				require.Equal(t, 1, code)
				require.Equal(t, 1, strings.Count(log, "claimed a message"), "one delivery for each Job")
				require.Contains(t, log, row.reason)
				if row.logged != "" {
					require.Contains(t, log, `"stack":`)
					require.Contains(t, log, row.logged)
				}
				r := w.record(t)
				want := records.Retrying
				if attempt == row.attempts {
					want = records.Failed
				}
				require.Equal(t, want, r.Status)
				require.Equal(t, row.reason, r.Error)
				require.Equal(t, attempt, r.Attempts)
			}
			reason, attempts := w.deadLetter(t)
			require.Equal(t, row.reason, reason)
			require.EqualValues(t, row.attempts, attempts)
			w.empty(t)
			require.Empty(t, w.stored(t))
		})
	}
	t.Run("is told to stop", func(t *testing.T) {
		t.Parallel()
		w := newWorker(t, program, 5)
		w.publish(t, "id", "slow")
		var out bytes.Buffer
		cmd := w.start(t, &out, "WORK_TIMEOUT=1h")
		require.Eventually(t, func() bool { return len(w.records(t)) == 1 }, patience, contracttest.Tick)
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.Equal(t, 1, exitCode(t, cmd), out.String())
		contracttest.Waiting(t, w.ch, w.q.Queue, 1)
		require.Equal(t, records.Processing, w.record(t).Status)

		_, _ = w.run(t, "WORK_TIMEOUT=100ms")
		want := 2
		if contracttest.RabbitMQIsAtLeast(t, w.q, "4.3") {
			want = 1
		}
		require.Equal(t, want, w.record(t).Attempts)
	})
	t.Run("a repetition", func(t *testing.T) {
		t.Parallel()
		w := newWorker(t, program, 5)
		testGood(t, w)
		// As after a node that died when the result was stored and nothing else.
		client, err := records.Connect(w.db, t.Name())
		require.NoError(t, err)
		defer client.Disconnect(context.WithoutCancel(t.Context()))
		_, err = client.Database(w.db.DB).Collection(w.db.Collection).UpdateByID(t.Context(), "id",
			bson.D{{Key: "$set", Value: bson.D{{Key: "status", Value: records.Processing}}}})
		require.NoError(t, err)
		testGood(t, w)
	})
	t.Run("its settings", func(t *testing.T) {
		t.Parallel()
		w := newWorker(t, program, 5)
		code, log := w.run(t, "MAX_WORDS=0", "RESULTS=")
		require.Equal(t, 1, code)
		require.Contains(t, log, "MAX_WORDS: must be at least 1")
		require.Contains(t, log, "RESULTS: give a collection")
		require.Equal(t, 1, strings.Count(log, "\n"))
	})
}

// testGood sends a message that can be done, and checks that it is stored once.
func testGood(t *testing.T, w *worker) {
	t.Helper()
	w.publish(t, "id", "one two three")
	code, log := w.run(t)
	require.Zero(t, code)
	require.Contains(t, log, "stored, working")
	r := w.record(t)
	require.Equal(t, records.Done, r.Status)
	require.Empty(t, r.Error)
	require.Equal(t, 1, r.Attempts)
	require.Equal(t, []result{{"id", "try", 3}}, w.stored(t))
	w.empty(t)
	contracttest.Waiting(t, w.ch, w.q.DeadQueue(), 0)
}
