package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/telemetry/telemetrytest"
)

// The tests run the program itself, as a Job does.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"processor-job": main})
}

// What somebody sees who runs the program on a terminal.
func TestTerminal(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			q, db := contracttest.RabbitMQ(t), contracttest.MongoDB(t)
			require.NoError(t, contracttest.Consumer(t, q).Close(), "declares the queue")
			env.Values["put"] = func(id, body string) { put(t, contracttest.Channel(t, q), q, id, body) }
			env.Vars = append(env.Vars, variables(q, db)...)
			env.Vars = append(env.Vars, "LOG_FORMAT=text", "CLAIM_TIMEOUT=100ms", "PROBE_ADDR=127.0.0.1:0", "PROCESSING_TIME=0s")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"put": func(s *testscript.TestScript, _ bool, args []string) {
				s.Value("put").(func(id, body string))(args[0], args[1])
			},
		},
	})
}

// variables are those of a Job.
func variables(q queue.Config, db records.Config) []string {
	return []string{
		"POD_NAME=processor-job-x",
		"RABBITMQ_HOST=" + q.Host, "RABBITMQ_PORT=" + string(q.Port), "RABBITMQ_USER=" + q.User, "RABBITMQ_PASSWORD=" + q.Password,
		"RABBITMQ_QUEUE=" + q.Queue, "RABBITMQ_RETRY_MIN=" + q.RetryMin.String(),
		"MONGODB_HOST=" + db.Host, "MONGODB_PORT=" + string(db.Port), "MONGODB_USER=" + db.User, "MONGODB_PASSWORD=" + db.Password,
		"MONGODB_COLLECTION=" + db.Collection,
	}
}

type job struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	probe  string
}

// start runs processor-job with the given variables.
func start(t *testing.T, q queue.Config, db records.Config, env ...string) *job {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	j := &job{cmd: exec.Command("processor-job"), probe: "http://" + free.Addr().String() + "/readyz"}
	require.NoError(t, free.Close())
	j.cmd.Env = append(os.Environ(), variables(q, db)...)
	j.cmd.Env = append(j.cmd.Env, "PROBE_ADDR="+free.Addr().String(), "PROCESSING_TIME=0s", "CLAIM_TIMEOUT=0s")
	j.cmd.Env = append(j.cmd.Env, env...)
	j.cmd.Stdout, j.cmd.Stderr = &j.output, &j.output
	require.NoError(t, j.cmd.Start())
	t.Cleanup(func() { _ = j.cmd.Process.Kill() })
	return j
}

// wait returns the exit code, and the last line of the log.
func (j *job) wait(t *testing.T) (code int, last string) {
	t.Helper()
	if err := j.cmd.Wait(); err != nil {
		require.IsType(t, &exec.ExitError{}, err)
	}
	lines := strings.Split(strings.TrimSpace(j.output.String()), "\n")
	t.Log(j.output.String())
	return j.cmd.ProcessState.ExitCode(), lines[len(lines)-1]
}

func (j *job) isReady() bool {
	response, err := http.Get(j.probe)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode == http.StatusOK
}

// isUp says whether the probe is served, whatever it answers.
func (j *job) isUp() bool {
	response, err := http.Get(j.probe)
	if err != nil {
		return false
	}
	return response.Body.Close() == nil
}

func setup(t *testing.T) (queue.Config, records.Config, *amqp.Channel) {
	t.Helper()
	q := contracttest.RabbitMQ(t)
	require.NoError(t, contracttest.Consumer(t, q).Close(), "declares the queue")
	return q, contracttest.MongoDB(t), contracttest.Channel(t, q)
}

// put returns when the message waits, as a Job here does not wait for it.
func put(t testing.TB, ch *amqp.Channel, q queue.Config, id, body string) {
	t.Helper()
	require.NoError(t, ch.Confirm(false))
	confirmation, err := ch.PublishWithDeferredConfirm("", q.Queue, true, false, amqp.Publishing{MessageId: id, Body: []byte(body)})
	require.NoError(t, err)
	require.True(t, confirmation.Wait())
}

func stored(t *testing.T, db records.Config) (all []records.Record) {
	t.Helper()
	s, err := records.Open(db, t.Name())
	require.NoError(t, err)
	defer s.Close()
	require.Eventually(t, func() bool { // on a busy machine a connection takes seconds
		all = nil
		for r, err := range s.List(t.Context(), records.Query{}) {
			if err != nil {
				return false
			}
			all = append(all, r)
		}
		return true
	}, contracttest.Patience, contracttest.Tick)
	return all
}

// Work that panicked may have left anything behind.
func TestAWorkerThatStaysEndsWithAPanic(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	for i := range 60 { // a quarter of the attempts panics
		put(t, ch, q, fmt.Sprint("id-", i), `{"name":"a"}`)
	}
	j := start(t, q, db, "MESSAGES=0", "FAILURE_RATE=1")
	late := time.AfterFunc(contracttest.Patience, func() { _ = j.cmd.Process.Kill() })
	defer late.Stop()
	code, _ := j.wait(t)
	require.Equal(t, 1, code)
	require.Equal(t, 1, strings.Count(j.output.String(), `"msg":"work panicked"`))
}

func TestItTakesOneMessageOnly(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	for i := range 2 {
		put(t, ch, q, fmt.Sprint("id-", i), fmt.Sprintf(`{"name":"record%d","content":"c"}`, i))
	}
	code, last := start(t, q, db).wait(t)
	require.Zero(t, code)
	require.Contains(t, last, `"msg":"done"`)
	contracttest.Waiting(t, ch, q.Queue, 1)
	all := stored(t, db)
	require.Len(t, all, 1)
	require.Equal(t, "record0", all[0].Name)
	require.Equal(t, "processor-job-x", all[0].Job)
	require.Equal(t, records.Done, all[0].Status)
}

func TestReadyFromTheClaimOnAndStoppedWhileWorking(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	j := start(t, q, db, "PROCESSING_TIME=1h", "CLAIM_TIMEOUT=1h")
	require.Eventually(t, j.isUp, contracttest.Patience, contracttest.Tick)
	require.Never(t, j.isReady, 2*time.Second, contracttest.Tick, "nothing is claimed yet")
	publish1 := amqp.Publishing{MessageId: "id", Body: []byte(`{"name":"a"}`)}
	require.NoError(t, ch.Publish("", q.Queue, true, false, publish1))
	require.Eventually(t, j.isReady, contracttest.Patience, contracttest.Tick)
	contracttest.Waiting(t, ch, q.Queue, 0)
	require.Eventually(t, func() bool { return len(stored(t, db)) == 1 }, contracttest.Patience, contracttest.Tick)
	require.Equal(t, records.Processing, stored(t, db)[0].Status)

	require.NoError(t, j.cmd.Process.Signal(syscall.SIGTERM))
	code, last := j.wait(t)
	require.Equal(t, 1, code)
	require.Contains(t, last, "given back")
	contracttest.Waiting(t, ch, q.Queue, 1)
	require.Equal(t, records.Processing, stored(t, db)[0].Status)

	// the next Job ends it, in the same record
	code, _ = start(t, q, db, "POD_NAME=processor-job-y").wait(t)
	require.Zero(t, code)
	all := stored(t, db)
	require.Len(t, all, 1)
	require.Equal(t, records.Done, all[0].Status)
	require.Equal(t, "processor-job-y", all[0].Job)
	attempts := 2
	if contracttest.RabbitMQIsAtLeast(t, q, "4.3") {
		attempts = 1 // being told to stop is not the message's fault
	}
	require.Equal(t, attempts, all[0].Attempts)
}

func TestKilledWhileWorking(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	put(t, ch, q, "id", `{"name":"a"}`)
	j := start(t, q, db, "PROCESSING_TIME=1h")
	require.Eventually(t, j.isReady, contracttest.Patience, contracttest.Tick)
	require.NoError(t, j.cmd.Process.Kill())
	_ = j.cmd.Wait()
	contracttest.Waiting(t, ch, q.Queue, 1)
	code, _ := start(t, q, db).wait(t)
	require.Zero(t, code)
	require.Len(t, stored(t, db), 1)
}

func TestAMessageThatCanNeverWork(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	put(t, ch, q, "id", `not JSON`)
	code, last := start(t, q, db).wait(t)
	require.Equal(t, 1, code)
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(last), &line))
	require.Equal(t, string(deadLettered), line["outcome"])
	require.Contains(t, line["reason"], "not JSON")
	contracttest.Waiting(t, ch, q.DeadQueue(), 1)

	code, last = start(t, q, db).wait(t)
	require.Zero(t, code)
	require.Contains(t, last, "the queue is empty", "it is never tried again")
}

// MongoDB is tried before a message is claimed: an outage costs no attempt.
func TestWithoutMongoDBNoMessageIsTouched(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	put(t, ch, q, "id", `{"name":"a"}`)
	code, last := start(t, q, db, "MONGODB_HOST=127.0.0.1", "MONGODB_PORT=1", "RETRY_TIMEOUT=10s").wait(t)
	require.Equal(t, 1, code)
	require.Contains(t, last, "MongoDB")
	raw, ok, err := ch.Get(q.Queue, false)
	require.NoError(t, err)
	require.True(t, ok)
	require.False(t, raw.Redelivered)
}

func TestWithoutRabbitMQ(t *testing.T) {
	t.Parallel()
	q, db, _ := setup(t)
	code, last := start(t, q, db, "RABBITMQ_HOST=127.0.0.1", "RABBITMQ_PORT=1", "RETRY_TIMEOUT=10s").wait(t)
	require.Equal(t, 1, code)
	require.Contains(t, last, "gave up after 10s: RabbitMQ")
}

func TestStoppedBeforeItClaims(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	j := start(t, q, db, "CLAIM_TIMEOUT=1h")
	require.Eventually(t, j.isUp, contracttest.Patience, contracttest.Tick)
	require.NoError(t, j.cmd.Process.Signal(syscall.SIGTERM))
	code, _ := j.wait(t)
	require.Equal(t, 1, code)
	contracttest.Waiting(t, ch, q.Queue, 0)
}

func TestItStaysForOneMessageAfterTheOther(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	j := start(t, q, db, "MESSAGES=0")
	require.Eventually(t, j.isReady, contracttest.Patience, contracttest.Tick, "ready before any message")
	for i := range 3 {
		put(t, ch, q, fmt.Sprint("id-", i), `{"name":"a"}`)
	}
	put(t, ch, q, "odd", "not JSON")
	put(t, ch, q, "id-3", `{"name":"a"}`)
	require.Eventually(t, func() bool { return countDone(stored(t, db)) == 4 }, contracttest.Patience, contracttest.Tick, "a dead letter does not end it")
	contracttest.Waiting(t, ch, q.DeadQueue(), 1)
	require.NoError(t, j.cmd.Process.Signal(syscall.SIGTERM))
	code, last := j.wait(t)
	require.Zero(t, code)
	require.Contains(t, last, "no message at hand")
}

func countDone(all []records.Record) (n int) {
	for _, r := range all {
		if r.Status == records.Done {
			n++
		}
	}
	return n
}

// After SIGTERM it takes no new message, and finishes the one at hand when there
// is time for that.
func TestStayingItFinishesTheMessageAtHand(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	put(t, ch, q, "at hand", `{"name":"a"}`)
	put(t, ch, q, "next", `{"name":"b"}`)
	j := start(t, q, db, "MESSAGES=0", "PROCESSING_TIME=10s", "STOP_GRACE=1h")
	require.Eventually(t, func() bool { return len(stored(t, db)) == 1 }, contracttest.Patience, contracttest.Tick)
	require.NoError(t, j.cmd.Process.Signal(syscall.SIGTERM))
	code, _ := j.wait(t)
	require.Zero(t, code)
	all := stored(t, db)
	require.Len(t, all, 1)
	require.Equal(t, records.Done, all[0].Status)
	contracttest.Waiting(t, ch, q.Queue, 1)
}

func TestStayingItGivesTheMessageBackWhenThereIsNoTime(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	put(t, ch, q, "at hand", `{"name":"a"}`)
	j := start(t, q, db, "MESSAGES=0", "PROCESSING_TIME=1h", "STOP_GRACE=500ms")
	require.Eventually(t, func() bool { return len(stored(t, db)) == 1 }, contracttest.Patience, contracttest.Tick)
	require.NoError(t, j.cmd.Process.Signal(syscall.SIGTERM))
	code, last := j.wait(t)
	require.Equal(t, 1, code)
	require.Contains(t, last, "given back")
	contracttest.Waiting(t, ch, q.Queue, 1)
}

func TestSeveralMessagesThenTheExit(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	for i := range 3 {
		put(t, ch, q, fmt.Sprint("id-", i), `{"name":"a"}`)
	}
	code, _ := start(t, q, db, "MESSAGES=2").wait(t)
	require.Zero(t, code)
	require.Equal(t, 2, countDone(stored(t, db)))
	contracttest.Waiting(t, ch, q.Queue, 1)
}

// The spans of two Jobs: one that is told to stop, and the one that then does it.
func TestTheTraceOfAMessageGoesOnInItsJobs(t *testing.T) {
	t.Parallel()
	q, db, ch := setup(t)
	collector := telemetrytest.Start(t)
	require.NoError(t, ch.Confirm(false))
	sent := time.Now()
	confirmation, err := ch.PublishWithDeferredConfirm("", q.Queue, true, false, amqp.Publishing{
		MessageId: "id", Body: []byte(`{"name":"a"}`),
		Headers: amqp.Table{"sent-at-ms": sent.UnixMilli(), "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
	})
	require.NoError(t, err)
	require.True(t, confirmation.Wait())

	endpoint := "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL
	j := start(t, q, db, endpoint, "PROCESSING_TIME=1h")
	require.Eventually(t, func() bool { return len(stored(t, db)) == 1 }, contracttest.Patience, contracttest.Tick)
	require.NoError(t, j.cmd.Process.Signal(syscall.SIGTERM))
	code, last := j.wait(t)
	require.Equal(t, 1, code)
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(last), &line))
	first := named(t, collector.Spans(), "process "+q.Queue)
	require.Equal(t, "id", line["id"])
	require.EqualValues(t, 1, line["attempt"])
	require.Equal(t, "processor-job-x", line["job"])
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", line["trace_id"])
	require.Equal(t, telemetrytest.Hex(first.SpanId), line["span_id"])
	require.Equal(t, otlp.Status_STATUS_CODE_ERROR, first.Status.Code)
	require.Equal(t, "b7ad6b7169203331", telemetrytest.Hex(first.ParentSpanId))
	named(t, collector.Spans(), "nack "+q.Queue)

	before := len(collector.Spans())
	code, _ = start(t, q, db, endpoint, "POD_NAME=processor-job-y", "OTEL_SERVICE_NAME=mine").wait(t)
	require.Zero(t, code)
	var again []telemetrytest.Span
	for _, s := range collector.Spans() {
		if s.Resource["service.name"] == "mine" {
			again = append(again, s)
		}
	}
	require.Len(t, collector.Spans(), before+len(again))
	second := named(t, again, "process "+q.Queue)
	require.NotEmpty(t, second.Attribute("keda_p2.attempt"))
	require.Equal(t, "done", second.Attribute("keda_p2.outcome"))
	require.Equal(t, "processor-job-y", second.Attribute("k8s.pod.name"))
	require.Equal(t, first.TraceId, second.TraceId)
	require.Equal(t, first.ParentSpanId, second.ParentSpanId, "both are under the span that sent the message")
	end := second.Start()
	for _, name := range []string{"receive " + q.Queue, "store record", "work", "finish record", "ack " + q.Queue} {
		s := named(t, again, name)
		require.Equal(t, second.SpanId, s.ParentSpanId, name)
		require.False(t, s.Start().Before(end), "%s begins before the one before it ends", name)
		end = s.End()
		require.False(t, second.End().Before(end), name)
	}
	require.Equal(t, "mongodb", named(t, again, "store record").Attribute("db.system.name"))
	require.Len(t, again, 6)
}

func named(t *testing.T, spans []telemetrytest.Span, name string) telemetrytest.Span {
	t.Helper()
	return telemetrytest.Named(t, spans, name)
}

// Nothing depends on the collector: not the result, and the end by no more than
// two seconds.
func TestACollectorThatIsAwayOrSilent(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	for _, endpoint := range []string{"http://127.0.0.1:1", "http://" + silent.Addr().String()} {
		q, db, ch := setup(t)
		put(t, ch, q, "id", `{"name":"a"}`)
		code, _ := start(t, q, db, "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint).wait(t)
		require.Zero(t, code)
		require.Equal(t, 1, countDone(stored(t, db)))
		contracttest.Waiting(t, ch, q.Queue, 0)
	}
}
