package scaler

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/queue"
	"keda-p2/services/sandbox/infra"
)

// TestMain lets the test binary play the processor.
func TestMain(m *testing.M) {
	switch os.Getenv("PLAY") {
	case "":
		os.Exit(m.Run())
	case "success":
		fmt.Println(os.Getenv("POD_NAME"), os.Getenv("RABBITMQ_HOST"), "HOME="+os.Getenv("HOME"), os.Getenv("PATH"))
	case "volumes": // everything is where the variables and arguments say
		here, _ := os.Getwd()
		conf, err := os.ReadFile(os.Getenv("CONF"))
		fmt.Printf("%q %v %q %q\n", conf, err, here, os.Args[1:])
		fmt.Println(os.WriteFile(os.Getenv("SCRATCH")+"/x", nil, 0o600), os.TempDir())
	case "failure":
		fmt.Println(`{"level":"ERROR","msg":"failed","reason":"MongoDB is away"}`)
		os.Exit(1)
	case "panic":
		panic("oh")
	case "ready until SIGTERM":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		go func() { _ = http.ListenAndServe(os.Getenv("PROBE_ADDR"), http.HandlerFunc(probe)) }()
		<-stop
		os.Exit(1)
	case "never ready, no SIGTERM":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ignoring")
		select {}
	}
}

func probe(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/readyz" {
		w.WriteHeader(http.StatusNotFound)
	}
}

// logs is what a scaler has logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// newScaler returns one whose Jobs play the given part.
func newScaler(t *testing.T, part string, change func(*Config)) (*Scaler, *logs) {
	t.Helper()
	l := &logs{}
	c := Config{
		Job: ScaledJob{
			Name: "processor-job", Queue: "task_queue", Interval: 20 * time.Millisecond,
			Strategy:          Strategy{Name: "accurate", Target: 1, MaxReplicas: 10},
			PendingUntilReady: true,
			SuccessfulHistory: 5, FailedHistory: 5,
			Grace:     time.Minute,
			ProbePath: "/readyz", ProbePeriod: 20 * time.Millisecond, ProbeFailures: 3,
			Env: map[string]string{"PLAY": part, "RABBITMQ_HOST": "manifest", "RABBITMQ_USER": "user", "POD_NAME": PodName},
		},
		Processor: os.Args[0],
		Env:       map[string]string{"RABBITMQ_HOST": "override"},
		Dir:       t.TempDir(),
		Log:       slog.New(slog.NewTextHandler(l, nil)),
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	require.NoError(t, err)
	return s, l
}

// stop ends Jobs as the end of Run does.
func (s *Scaler) stop() {
	close(s.stopping)
	s.wait.Wait()
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 10*time.Millisecond)
}

func TestJobSucceeds(t *testing.T) {
	t.Parallel()
	s, l := newScaler(t, "success", nil)
	s.start()
	s.wait.Wait()
	require.Equal(t, Totals{Started: 1, Succeeded: 1}, s.Totals())
	j := s.Jobs()[0]
	require.Equal(t, Succeeded, j.Status)
	require.Regexp(t, `^processor-job-[a-z0-9]{5}$`, j.Name)
	require.Regexp(t, `^`+j.Name+`-[a-z0-9]{5}$`, j.Pod)
	require.False(t, j.Finished.Before(j.Started))
	log, err := os.ReadFile(s.logFile(&j))
	require.NoError(t, err)
	require.Equal(t, j.Pod+" override HOME= "+os.Getenv("PATH")+"\n", string(log), "the pod's name, the override, and nothing of this environment but its PATH")
	require.Equal(t, 1, l.count("job started"))
	require.Equal(t, 1, l.count("job succeeded"))
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	s, _ := newScaler(t, "volumes", func(c *Config) {
		c.Job.Command, c.Job.Args = []string{"/service", PodName}, []string{"--scratch=/scratch/x", "/scratchy"}
		c.Job.WorkingDir = "/scratch"
		c.Job.Env["CONF"], c.Job.Env["SCRATCH"] = "/etc/worker/a.conf", "/scratch"
		c.Job.Folders = []Folder{
			{MountPath: "/scratch", Volume: "scratch"},
			{MountPath: "/tmp", Volume: "scratch", SubPath: "tmp"},
			{MountPath: "/etc/worker", Volume: "files", Files: map[string]string{"a.conf": "a = 1"}},
		}
	})
	s.start()
	s.wait.Wait()
	j := s.Jobs()[0]
	require.Equal(t, Succeeded, j.Status, j.Reason)
	log, err := os.ReadFile(s.logFile(&j))
	require.NoError(t, err)
	scratch := s.folder(&j) + "/scratch"
	require.Equal(t, fmt.Sprintf("\"a = 1\" <nil> %q %q\n<nil> %s\n", scratch,
		[]string{j.Pod, "--scratch=" + scratch + "/x", "/scratchy"}, scratch+"/tmp"), string(log))
	require.NoDirExists(t, s.folder(&j), "it goes with the Job")
}

func TestCommand(t *testing.T) {
	t.Parallel()
	path, err := findProgram([]string{"/service", "x"}, os.Args[0])
	require.NoError(t, err)
	require.Equal(t, os.Args[0], path)
	path, err = findProgram([]string{"sh", "-c", "exit"}, "not needed")
	require.NoError(t, err)
	require.Regexp(t, "/sh$", path)
	_, err = findProgram([]string{"/app/worker"}, os.Args[0])
	require.ErrorContains(t, err, "command is not on this machine")
}

func TestJobFails(t *testing.T) {
	t.Parallel()
	for part, want := range map[string]string{
		"failure": "exit status 1: MongoDB is away", // the reason of a line in JSON
		"panic":   "exit status 2: ",                // otherwise the last line
	} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			s, l := newScaler(t, part, nil)
			s.start()
			s.wait.Wait()
			require.Equal(t, Totals{Started: 1, Failed: 1}, s.Totals())
			require.Equal(t, Failed, s.Jobs()[0].Status)
			require.Contains(t, s.Jobs()[0].Reason, want)
			require.Equal(t, 1, l.count("level=WARN msg=\"job failed\""))
		})
	}
}

func TestPendingUntilReady(t *testing.T) {
	t.Parallel()
	counts := func(s *Scaler) [2]int64 {
		running, pending := s.c.Job.Count(s.Jobs())
		return [2]int64{running, pending}
	}
	t.Run("by the probe", func(t *testing.T) {
		t.Parallel()
		s, _ := newScaler(t, "ready until SIGTERM", nil)
		s.start()
		eventually(t, func() bool { return counts(s) == [2]int64{1, 0} })
		s.stop()
		require.Equal(t, [2]int64{0, 0}, counts(s))
		require.Equal(t, Stopped, s.Jobs()[0].Status)
		require.Equal(t, Totals{Started: 1}, s.Totals(), "stopped is neither a success nor a failure")
	})
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		s, _ := newScaler(t, "never ready, no SIGTERM", func(c *Config) { c.Job.Grace = time.Millisecond })
		s.start()
		require.Equal(t, [2]int64{1, 1}, counts(s))
		s.stop()
	})
	t.Run("without a probe", func(t *testing.T) {
		t.Parallel()
		s, _ := newScaler(t, "ready until SIGTERM", func(c *Config) { c.Job.ProbePath = "" })
		s.start()
		eventually(t, func() bool { return counts(s) == [2]int64{1, 0} })
		s.stop()
	})
	t.Run("without the condition", func(t *testing.T) {
		t.Parallel()
		s, _ := newScaler(t, "never ready, no SIGTERM", func(c *Config) {
			c.Job.PendingUntilReady = false
			c.Job.Grace = time.Millisecond
		})
		s.start()
		require.Equal(t, [2]int64{1, 0}, counts(s))
		s.stop()
	})
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	r := readiness{threshold: 3}
	for i, probe := range []struct{ success, ready bool }{
		{false, false}, {true, true}, {false, true}, {false, true}, {true, true},
		{false, true}, {false, true}, {false, false}, {false, false}, {true, true},
	} {
		require.Equal(t, probe.ready, r.after(probe.success), "probe %d", i)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]string{
		"with SIGTERM": "ready until SIGTERM",
		"with SIGKILL": "never ready, no SIGTERM",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := newScaler(t, part, func(c *Config) {
				c.Job.Deadline = 200 * time.Millisecond
				c.Job.Grace = 200 * time.Millisecond
			})
			s.start()
			s.wait.Wait()
			require.Equal(t, Failed, s.Jobs()[0].Status)
			require.Equal(t, "DeadlineExceeded: it ran for more than 200ms", s.Jobs()[0].Reason)
		})
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	s, _ := newScaler(t, "success", func(c *Config) { c.Job.SuccessfulHistory, c.Job.FailedHistory = 2, 0 })
	for range 4 {
		s.start()
		s.wait.Wait()
	}
	before := s.Jobs()
	s.env["PLAY"] = "failure"
	s.start()
	s.wait.Wait()
	require.Len(t, s.Jobs(), 5, "only a look at the queue prunes")
	s.env["PLAY"] = "ready until SIGTERM"
	s.start()

	s.prune()
	require.Equal(t, before[2:], s.Jobs()[:2], "the oldest go first")
	require.Equal(t, Running, s.Jobs()[2].Status)
	require.Equal(t, Totals{Started: 6, Succeeded: 4, Failed: 1}, s.Totals(), "they count all the same")
	require.NoFileExists(t, s.logFile(&before[0]))
	require.FileExists(t, s.logFile(&before[3]))
	s.stop()
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no program":  {func(c *Config) { c.Processor = "missing/processor-job" }, "missing/processor-job"},
		"a bad port":  {func(c *Config) { c.Env["RABBITMQ_PORT"] = "tcp://10.0.0.1" }, "RABBITMQ_PORT"},
		"TLS or not?": {func(c *Config) { c.Env["RABBITMQ_TLS"] = "maybe" }, "RABBITMQ_TLS"},
		"no login":    {func(c *Config) { c.Env["RABBITMQ_USER"] = "" }, "RABBITMQ_USER"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := Config{
				Processor: os.Args[0],
				Job:       ScaledJob{Queue: "q", Env: map[string]string{"RABBITMQ_USER": "user"}},
				Env:       map[string]string{},
			}
			tt.change(&c)
			_, err := New(c)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// TestRun follows a scaler through all that RabbitMQ can do to it.
func TestRun(t *testing.T) {
	t.Parallel()
	node, err := infra.StartRabbitMQ(t.Context(), infra.RabbitMQConfig{
		Dir: t.TempDir(), User: "user", Password: "P@ssw0rd", Kind: os.Getenv("SANDBOX_RABBITMQ"),
		Say: func(text string) { t.Log(text) },
	})
	require.NoError(t, err)
	t.Cleanup(node.Close)
	s, l := newScaler(t, "never ready, no SIGTERM", func(c *Config) {
		c.Job.Grace = time.Millisecond
		c.Job.Strategy.MaxReplicas = 4
		c.Env = map[string]string{"RABBITMQ_HOST": node.Host, "RABBITMQ_PORT": node.Port, "RABBITMQ_PASSWORD": "P@ssw0rd"}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	started := func(n int) func() bool { return func() bool { return s.Totals().Started == n } }

	eventually(t, func() bool { return l.count("the queue does not exist yet") == 1 })
	publish(t, s.connection, 3)
	eventually(t, started(3))
	require.Equal(t, 1, l.count("watching the queue"))

	node.Stop()
	eventually(t, func() bool { return l.count("RabbitMQ cannot be reached") == 1 })
	require.NoError(t, node.Start(t.Context()))
	eventually(t, func() bool { return l.count("watching the queue") == 2 })
	require.Equal(t, 3, s.Totals().Started, "none of the pending Jobs is started again")
	require.Equal(t, 1, l.count("RabbitMQ cannot be reached"), "logged once")

	publish(t, s.connection, 9)
	eventually(t, started(4)) // the maximum

	cancel()
	<-done
	for _, j := range s.Jobs() {
		require.Equal(t, Stopped, j.Status)
	}
}

func publish(t *testing.T, c queue.Config, n int) {
	t.Helper()
	conn, err := queue.Dial(t.Context(), c, t.Name())
	require.NoError(t, err)
	defer conn.Close()
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.Confirm(false))
	_, err = ch.QueueDeclare(c.Queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	require.NoError(t, err)
	for range n {
		confirm, err := ch.PublishWithDeferredConfirm("", c.Queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
		require.NoError(t, err)
		require.True(t, confirm.Wait())
	}
}
