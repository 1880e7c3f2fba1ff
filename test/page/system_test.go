//go:build page

package page_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/infra"
	"keda-p2/services/sandbox/process"
	"keda-p2/services/sandbox/scaler"
)

const (
	patience = 2 * time.Minute
	tick     = 50 * time.Millisecond
	grace    = 10 * time.Second
)

// system is what `make up` starts, for one test.
type system struct {
	dir      string
	env      map[string]string
	rabbitmq *infra.RabbitMQ
	mongodb  *infra.MongoDB
	app      *process.Process
	url      string
	queue    queue.Config

	mu   sync.Mutex
	jobs []*process.Process
}

// startSystem starts the servers, complex-app and the stand-in for KEDA, whose
// Jobs work for the given time.
func startSystem(t *testing.T, work time.Duration) *system {
	t.Helper()
	job, err := scaler.Load("../../deploy")
	require.NoError(t, err)
	s := &system{dir: t.TempDir(), env: map[string]string{}}
	folder := func(name string) string {
		dir := filepath.Join(s.dir, name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		return dir
	}
	s.mongodb, err = infra.StartMongoDB(t.Context(), infra.MongoDBConfig{
		Dir: folder("mongodb"), Kind: os.Getenv("SANDBOX_MONGODB"), Say: func(text string) { t.Log(text) },
	})
	require.NoError(t, err)
	t.Cleanup(s.mongodb.Close)
	s.rabbitmq, err = infra.StartRabbitMQ(t.Context(), infra.RabbitMQConfig{
		Dir: folder("rabbitmq"), User: job.Env["RABBITMQ_USER"], Password: job.Env["RABBITMQ_PASSWORD"],
		Kind: os.Getenv("SANDBOX_RABBITMQ"), Say: func(text string) { t.Log(text) },
	})
	require.NoError(t, err)
	t.Cleanup(s.rabbitmq.Close)
	s.queue = queue.Config{
		Server: config.Server{Host: s.rabbitmq.Host, User: job.Env["RABBITMQ_USER"], Password: job.Env["RABBITMQ_PASSWORD"]},
		Port:   config.Port(s.rabbitmq.Port), VHost: "/", Queue: job.Queue,
	}
	servers := map[string]string{
		"RABBITMQ_HOST": s.rabbitmq.Host, "RABBITMQ_PORT": s.rabbitmq.Port,
		"MONGODB_HOST": s.mongodb.Host, "MONGODB_PORT": s.mongodb.Port, "MONGODB_USER": "", "MONGODB_PASSWORD": "",
		"PROCESSING_TIME": work.String(),
	}
	port, release, err := freeport.Reserve()
	require.NoError(t, err)
	t.Cleanup(release)
	maps.Copy(s.env, job.Env)
	maps.Copy(s.env, servers)
	s.env["HTTP_ADDR"] = fmt.Sprintf("127.0.0.1:%d", port)
	s.env["ADMIN_ADDR"] = "127.0.0.1:0"
	s.env["CONFIRM_TIMEOUT"] = "1m" // this machine may be busy
	s.url = "http://" + s.env["HTTP_ADDR"]
	s.startApp(t)
	t.Cleanup(func() { s.app.Stop(grace) })

	job.Interval = time.Second
	starts, err := scaler.New(scaler.Config{Job: job, Processor: program("processor-job"), Env: servers, Dir: folder("jobs"), Log: slog.New(slog.DiscardHandler), Start: s.startJob})
	require.NoError(t, err)
	running, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); starts.Run(running) }()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

// program names one of those that `make build` has built.
func program(name string) string { return filepath.Join("../../bin", name) }

func (s *system) startApp(t *testing.T) {
	t.Helper()
	cmd := exec.Command(program("complex-app"))
	cmd.Env = process.Env(s.env)
	var err error
	s.app, err = process.Start(cmd, filepath.Join(s.dir, "complex-app.log"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		response, err := http.Get(s.url + "/readyz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, patience, tick)
}

func (s *system) startJob(cmd *exec.Cmd, log string) (*process.Process, error) {
	p, err := process.Start(cmd, log)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, p)
	return p, err
}

// killJob kills the first Job.
func (s *system) killJob() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs[0].Kill()
}

// bury makes a dead letter: a message that no Job can ever process.
func (s *system) bury(t *testing.T, id, body string) {
	t.Helper()
	s.publish(t, s.queue.Queue, amqp.Publishing{MessageId: id, Body: []byte(body), DeliveryMode: amqp.Persistent, Timestamp: time.Now()})
}

func (s *system) publish(t *testing.T, queueName string, messages ...amqp.Publishing) {
	t.Helper()
	ch := contracttest.Channel(t, s.queue)
	require.NoError(t, ch.Confirm(false))
	for _, m := range messages {
		confirm, err := ch.PublishWithDeferredConfirm("", queueName, true, false, m)
		require.NoError(t, err)
		require.True(t, confirm.Wait())
	}
}

// work processes messages with some processor-jobs that stay.
func (s *system) work(t *testing.T, workers int, each time.Duration) {
	t.Helper()
	for i := range workers {
		port, release, err := freeport.Reserve()
		require.NoError(t, err)
		t.Cleanup(release)
		env := maps.Clone(s.env)
		env["MESSAGES"], env["PROCESSING_TIME"] = "0", each.String()
		env["PROBE_ADDR"], env["POD_NAME"] = fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("worker-%d", i)
		cmd := exec.Command(program("processor-job"))
		cmd.Env = process.Env(env)
		p, err := process.Start(cmd, filepath.Join(s.dir, env["POD_NAME"]+".log"))
		require.NoError(t, err)
		t.Cleanup(func() { p.Stop(grace) })
	}
}
