package failures_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
)

// running is a complex-app or processor-job.
type running struct {
	*process.Process
	cmd  *exec.Cmd
	log  string // its file
	addr string // where it listens
}

func program(name string) string { return filepath.Join(os.Getenv(programs), name) }

// start runs a program with the given servers. The variables win over those.
func start(t *testing.T, path, addrVar string, q queue.Config, db records.Config, env []string) *running {
	t.Helper()
	port, release, err := freeport.Reserve()
	require.NoError(t, err)
	t.Cleanup(release)
	p := &running{addr: fmt.Sprintf("127.0.0.1:%d", port), log: filepath.Join(t.TempDir(), "log")}
	p.cmd = exec.Command(path)
	p.cmd.Env = append([]string{
		"RABBITMQ_HOST=" + q.Host, "RABBITMQ_PORT=" + string(q.Port), "RABBITMQ_VHOST=" + q.VHost,
		"RABBITMQ_USER=" + q.User, "RABBITMQ_PASSWORD=" + q.Password, "RABBITMQ_QUEUE=" + q.Queue,
		"RABBITMQ_MAX_ATTEMPTS=" + strconv.Itoa(q.MaxAttempts), "RABBITMQ_RETRY_MIN=" + q.RetryMin.String(), "RABBITMQ_RETRY_MAX=" + q.RetryMax.String(),
		"MONGODB_HOST=" + db.Host, "MONGODB_PORT=" + string(db.Port), "MONGODB_USER=" + db.User, "MONGODB_PASSWORD=" + db.Password,
		"MONGODB_DB=" + db.DB, "MONGODB_COLLECTION=" + db.Collection, "MONGODB_AUTH_SOURCE=" + db.AuthSource,
		addrVar + "=" + p.addr,
	}, env...)
	p.Process, err = process.Start(p.cmd, p.log)
	require.NoError(t, err)
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s %s:\n%s", filepath.Base(path), env, p.Tail(60))
		}
	})
	return p
}

// startJob runs processor-job, whose work takes no time unless env says so.
func startJob(t *testing.T, pod string, q queue.Config, db records.Config, env ...string) *running {
	t.Helper()
	return start(t, program("processor-job"), "PROBE_ADDR", q, db,
		append([]string{"POD_NAME=" + pod, "PROCESSING_TIME=0s", "CLAIM_TIMEOUT=0s"}, env...))
}

// startApp runs complex-app and waits until it answers, ready or not.
func startApp(t *testing.T, q queue.Config, db records.Config, env ...string) *running {
	t.Helper()
	defaults := []string{"ADMIN_ADDR=127.0.0.1:0", "CONFIRM_TIMEOUT=5s"} // this machine may be busy
	p := start(t, program("complex-app"), "HTTP_ADDR", q, db, append(defaults, env...))
	p.eventually(t, "/healthz", http.StatusOK)
	return p
}

// signal sends one to the program, which may just have ended.
func (p *running) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
}

// exit waits for the program's end and returns its exit code: -1 when it was
// killed.
func (p *running) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.Done:
	case <-time.After(patience):
		require.FailNow(t, "it does not end", "%s", p.Tail(5))
	}
	return p.cmd.ProcessState.ExitCode()
}

// logged says whether the log contains a text by now.
func (p *running) logged(text string) bool { return p.logs(text) > 0 }

// logs counts a text in the log.
func (p *running) logs(text string) int {
	content, _ := os.ReadFile(p.log)
	return bytes.Count(content, []byte(text))
}

// answers returns the status of a GET, or 0.
func (p *running) answers(path string) int {
	client := http.Client{Timeout: patience}
	response, err := client.Get("http://" + p.addr + path)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func (p *running) eventually(t *testing.T, path string, status int) {
	t.Helper()
	eventually(t, func() bool { return p.answers(path) == status }, "%s answers %d", path, status)
}

// claimed says whether a Job has claimed its message.
func (p *running) claimed() bool { return p.answers("/readyz") == http.StatusOK }

// answer is complex-app's to POST /send.
type answer struct {
	status     int
	id, detail string
	took       time.Duration
}

// send posts one event. An empty key is none. The error is the connection's.
func (p *running) send(ctx context.Context, key, name, content string) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.addr+"/send",
		strings.NewReader(url.Values{"name": {name}, "content": {content}}.Encode()))
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	began := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	var body struct{ ID, Detail string }
	err = json.NewDecoder(response.Body).Decode(&body)
	return answer{response.StatusCode, body.ID, body.Detail, time.Since(began)}, err
}

// mustSend sends one event and wants the given status.
func (p *running) mustSend(t *testing.T, key string, status int) answer {
	t.Helper()
	a, err := p.send(t.Context(), key, "name", "content")
	require.NoError(t, err)
	require.Equal(t, status, a.status, "%+v", a)
	return a
}

// sendUntilAccepted sends an event with a key as a good client does.
func (p *running) sendUntilAccepted(t *testing.T, key string) {
	t.Helper()
	eventually(t, func() bool {
		a, err := p.send(t.Context(), key, "name", "content")
		require.NoError(t, err)
		require.Contains(t, []int{http.StatusAccepted, http.StatusServiceUnavailable}, a.status)
		return a.status == http.StatusAccepted
	}, "%s is accepted", key)
}

// openFiles counts the program's files and sockets.
func (p *running) openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "fd"))
	require.NoError(t, err)
	return len(files)
}

// goroutines ends the program with the signal that makes Go print the stacks of
// all goroutines, and returns those.
func (p *running) goroutines(t *testing.T) []string {
	t.Helper()
	p.signal(t, syscall.SIGQUIT)
	p.exit(t)
	content, err := os.ReadFile(p.log)
	require.NoError(t, err)
	stacks := strings.Split(string(content), "\n\ngoroutine ")[1:]
	require.NotEmpty(t, stacks)
	return stacks
}

func eventually(t *testing.T, condition func() bool, what string, args ...any) {
	t.Helper()
	require.Eventually(t, condition, patience, tick, append([]any{what}, args...)...)
}

// publish puts messages into the queue past complex-app and returns when they
// wait there.
func publish(t *testing.T, q queue.Config, messages ...amqp.Publishing) {
	t.Helper()
	publishTo(t, q, q.Queue, messages...)
}

func publishTo(t *testing.T, q queue.Config, name string, messages ...amqp.Publishing) {
	t.Helper()
	ch := contracttest.Channel(t, q)
	require.NoError(t, ch.Confirm(false))
	for _, m := range messages {
		confirmation, err := ch.PublishWithDeferredConfirm("", name, true, false, m)
		require.NoError(t, err)
		require.True(t, confirmation.Wait())
	}
}

// event is a message as complex-app sends it.
func event(id string) amqp.Publishing {
	return amqp.Publishing{MessageId: id, DeliveryMode: amqp.Persistent, Body: fmt.Appendf(nil, `{"name":%q,"content":"c"}`, id)}
}

// requireQueues waits until so many messages wait and are dead.
func requireQueues(t *testing.T, q queue.Config, waiting, dead int) {
	t.Helper()
	ch := contracttest.Channel(t, q)
	for name, want := range map[string]int{q.Queue: waiting, q.DeadQueue(): dead} {
		eventually(t, func() bool {
			state, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			return err == nil && state.Messages == want
		}, "%d messages in %s", want, name)
	}
}

// drain empties the queue and counts the messages by id.
func drain(t *testing.T, q queue.Config) map[string]int {
	t.Helper()
	ch := contracttest.Channel(t, q)
	ids := map[string]int{}
	for {
		m, ok, err := ch.Get(q.Queue, true)
		require.NoError(t, err)
		if !ok {
			return ids
		}
		ids[m.MessageId]++
	}
}

// all returns the records, in the order in which they were stored.
func all(t *testing.T, db records.Config) []records.Record {
	t.Helper()
	var found []records.Record
	// on a busy machine the database may need more than one try, too
	eventually(t, func() (ok bool) {
		var err error
		found, err = read(db)
		return err == nil
	}, "the records can be read")
	return found
}

func read(db records.Config) (found []records.Record, err error) {
	s, err := records.Open(db, "test")
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // nothing is in flight
	for r, err := range s.List(context.Background(), records.Query{}) {
		if err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, nil
}

// status returns the one record's, or none when there is no record.
func status(db records.Config) records.Status {
	found, err := read(db)
	switch {
	case err != nil:
		return "unreadable"
	case len(found) == 0:
		return none
	case len(found) > 1:
		return "several"
	}
	return found[0].Status
}

// none is the status where there is no record.
const none records.Status = ""

// requireStatus waits until the one record has the given status.
func requireStatus(t *testing.T, db records.Config, want records.Status) {
	t.Helper()
	eventually(t, func() bool { return status(db) == want }, "the record's status is %q", want)
}

// requireDone checks the one record that one event has become.
func requireDone(t *testing.T, db records.Config, job string, attempts int) {
	t.Helper()
	found := all(t, db)
	require.Len(t, found, 1)
	require.Equal(t, records.Done, found[0].Status)
	require.Equal(t, job, found[0].Job)
	require.Equal(t, attempts, found[0].Attempts)
	require.False(t, found[0].FinishedAt.IsZero())
}

// secondAttempt is the number of the attempt after a worker has given its message
// back for reasons of its own: RabbitMQ 4.3 does not count those, older versions do.
func secondAttempt(t *testing.T, q queue.Config) int {
	t.Helper()
	if contracttest.RabbitMQIsAtLeast(t, q, "4.3") {
		return 1
	}
	return 2
}

// dial opens a raw connection.
func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
