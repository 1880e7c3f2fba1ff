package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/infra"
	"keda-p2/services/sandbox/process"
	"keda-p2/services/sandbox/scaler"
	"keda-p2/test/memory"
)

// Every connection goes through one of these proxies.
const (
	toApp            = "client-app"
	appToRabbitMQ    = "app-rabbitmq"
	appToMongoDB     = "app-mongodb"
	jobsToRabbitMQ   = "jobs-rabbitmq"
	jobsToMongoDB    = "jobs-mongodb"
	scalerToRabbitMQ = "scaler-rabbitmq"
)

var links = []string{toApp, appToRabbitMQ, appToMongoDB, jobsToRabbitMQ, jobsToMongoDB, scalerToRabbitMQ}

const (
	grace     = 30 * time.Second // from SIGTERM to SIGKILL
	upTimeout = time.Minute
	firstLife = 300 * time.Millisecond // of a Job, until it is measured
	// failureRate is the share of attempts in which the work itself fails: with an
	// error, for good, or by a panic.
	failureRate = "0.15"
	// retryMin is shorter than by default, so that a run does not wait for it.
	retryMin = "200ms"

	maxJobs = 16 // at a time keep two cores busy
)

// system is what runs, all of it in one temporary folder.
type system struct {
	plan     plan
	dir, bin string
	rabbitmq *infra.RabbitMQ
	mongodb  *infra.MongoDB
	proxies  map[string]*toxiproxy.Proxy
	locks    map[string]*sync.Mutex // one fault at a time for each proxy
	appEnv   map[string]string
	app      *process.Process
	limit    int // of complex-app's memory, in bytes
	peak     int // of the memory that it took
	scaler   *scaler.Scaler
	closers  []func()

	tally   tally
	started int          // Jobs; only the scaler's goroutine uses it
	life    atomic.Int64 // a Job's, usually, in nanoseconds
	calm    atomic.Bool  // no Job is killed any more
}

func (s *system) onClose(f func()) { s.closers = append(s.closers, f) }

// close ends everything that was started, the last first.
func (s *system) close() {
	for _, f := range slices.Backward(s.closers) {
		f()
	}
}

func (s *system) start(ctx context.Context, deploy string, say func(string)) error {
	job, err := scaler.Load(deploy)
	if err != nil {
		return err
	}
	dirs := map[string]string{}
	for _, name := range []string{"rabbitmq", "mongodb", "jobs"} {
		dirs[name] = filepath.Join(s.dir, name)
		if err := os.Mkdir(dirs[name], 0o700); err != nil {
			return err
		}
	}
	if s.mongodb, err = infra.StartMongoDB(ctx, infra.MongoDBConfig{
		Dir: dirs["mongodb"], Kind: os.Getenv("SANDBOX_MONGODB"), Say: say,
	}); err != nil {
		return err
	}
	s.onClose(s.mongodb.Close)
	s.rabbitmq, err = infra.StartRabbitMQ(ctx, infra.RabbitMQConfig{
		Dir: dirs["rabbitmq"], User: job.Env["RABBITMQ_USER"], Password: job.Env["RABBITMQ_PASSWORD"],
		Kind: os.Getenv("SANDBOX_RABBITMQ"), Say: say,
	})
	if err != nil {
		return err
	}
	s.onClose(s.rabbitmq.Close)
	appPort, err := freeport.Pick()
	if err != nil {
		return err
	}
	if s.limit, s.appEnv, err = memory.Limit(deploy); err != nil {
		return err
	}
	maps.Copy(s.appEnv, job.Env)
	s.appEnv["HTTP_ADDR"] = net.JoinHostPort("127.0.0.1", strconv.Itoa(appPort))
	s.appEnv["ADMIN_ADDR"] = "127.0.0.1:0"
	s.appEnv["RABBITMQ_RETRY_MIN"] = retryMin
	if err := s.startProxies(); err != nil {
		return err
	}
	s.connect(s.appEnv, appToRabbitMQ, appToMongoDB)
	if err := s.startApp(ctx); err != nil {
		return err
	}
	s.onClose(func() { s.app.Stop(grace) })

	// the manifest's Job, only faster
	job.Interval, job.ProbePeriod = 200*time.Millisecond, 100*time.Millisecond
	job.Strategy.MaxReplicas = maxJobs
	job.SuccessfulHistory, job.FailedHistory = math.MaxInt, math.MaxInt // their logs are the trail
	env := map[string]string{"CLAIM_TIMEOUT": "1s", "RABBITMQ_RETRY_MIN": retryMin}
	s.connect(env, scalerToRabbitMQ, jobsToMongoDB)
	s.scaler, err = scaler.New(scaler.Config{
		Job: job, Processor: filepath.Join(s.bin, "processor-job"), Env: env, Dir: dirs["jobs"],
		Log: slog.New(slog.DiscardHandler), Start: s.startJob,
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wait sync.WaitGroup
	wait.Go(func() { s.scaler.Run(running) })
	s.onClose(func() { stop(); wait.Wait() })
	return nil
}

// startProxies starts them on ports that stay the same when a proxy restarts.
func (s *system) startProxies() error {
	toxics.Register(stall, new(stallToxic))
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	s.proxies = map[string]*toxiproxy.Proxy{}
	for _, link := range links {
		port, err := freeport.Pick()
		if err != nil {
			return err
		}
		upstream := s.appEnv["HTTP_ADDR"]
		switch {
		case strings.HasSuffix(link, "-rabbitmq"):
			upstream = net.JoinHostPort(s.rabbitmq.Host, s.rabbitmq.Port)
		case strings.HasSuffix(link, "-mongodb"):
			upstream = net.JoinHostPort(s.mongodb.Host, s.mongodb.Port)
		}
		proxy := toxiproxy.NewProxy(server, link, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), upstream)
		if err := proxy.Start(); err != nil {
			return err
		}
		s.onClose(proxy.Stop)
		s.proxies[link], s.locks[link] = proxy, &sync.Mutex{}
	}
	return nil
}

// connect sets the variables that lead to the servers through two proxies.
func (s *system) connect(env map[string]string, rabbitmq, mongodb string) {
	env["RABBITMQ_HOST"], env["RABBITMQ_PORT"], _ = net.SplitHostPort(s.proxies[rabbitmq].Listen)
	env["MONGODB_HOST"], env["MONGODB_PORT"], _ = net.SplitHostPort(s.proxies[mongodb].Listen)
	env["MONGODB_USER"], env["MONGODB_PASSWORD"] = "", "" // it knows no logins
}

func (s *system) startApp(ctx context.Context) (err error) {
	cmd := exec.Command(filepath.Join(s.bin, "complex-app"))
	cmd.Env = process.Env(s.appEnv)
	if s.app, err = process.Start(cmd, filepath.Join(s.dir, "complex-app.log")); err != nil {
		return fmt.Errorf("%w: run make build first", err)
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	for s.ask(ctx, http.MethodGet, "/healthz", nil) != nil {
		select {
		case <-s.app.Done:
			return fmt.Errorf("complex-app has ended: %v\n%s", s.app.Err(), s.app.Tail(5))
		case <-ctx.Done():
			return errors.New("complex-app does not answer")
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// checkApp returns an error when complex-app has ended by itself, or has taken more memory
// than its pod has, where the kernel would have killed it.
func (s *system) checkApp() error {
	select {
	case <-s.app.Done:
		return fmt.Errorf("complex-app has ended: %v\n%s", s.app.Err(), s.app.Tail(20))
	default:
	}
	used, err := memory.Peak(s.app.Pid())
	if err == nil && used > s.limit {
		err = fmt.Errorf("complex-app took %d MiB of memory, and its pod has %d", used>>20, s.limit>>20)
	}
	s.peak = max(s.peak, used)
	return err
}

// startJob starts a Job as its fate wants it, and sees to its end.
func (s *system) startJob(cmd *exec.Cmd, log string) (*process.Process, error) {
	fate := s.plan.job(s.started)
	s.started++
	// KEDA and the Jobs have a proxy each; of two values the last one counts
	_, port, _ := net.SplitHostPort(s.proxies[jobsToRabbitMQ].Listen)
	rate := failureRate
	if s.calm.Load() {
		rate = "0" // what is redriven succeeds
	}
	cmd.Env = append(cmd.Env, "RABBITMQ_PORT="+port, "PROCESSING_TIME="+fate.work.String(), "FAILURE_RATE="+rate)
	began := time.Now()
	p, err := process.Start(cmd, log)
	if err != nil {
		return nil, err
	}
	killed, moment := fate.killed && !s.calm.Load(), time.Duration(fate.moment*float64(s.life.Load()))
	go func() {
		if killed && fate.wave {
			atWork(p)
			moment = time.Duration(fate.moment * float64(fate.work))
		}
		var killing <-chan time.Time // never
		if killed {
			killing = time.After(moment)
		}
		select {
		case <-p.Done:
			s.life.Add((int64(time.Since(began)) - s.life.Load()) / 10)
		case <-killing:
			if fate.gently {
				s.tally.add(sigterm)
				p.Stop(grace)
			} else {
				s.tally.add(sigkill)
				p.Kill()
			}
		}
	}()
	return p, nil
}

// atWork waits until a Job has stored its message, or has ended.
func atWork(p *process.Process) {
	for !strings.Contains(p.Tail(1), "stored, working") {
		select {
		case <-p.Done:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// running counts the Jobs that have not ended.
func (s *system) running() int {
	t := s.scaler.Totals()
	return t.Started - t.Succeeded - t.Failed
}

// waiting counts the messages in the queue, over a connection of its own.
func (s *system) waiting(ctx context.Context) (int, error) {
	c := queue.Config{
		Server: config.Server{Host: s.rabbitmq.Host, User: s.appEnv["RABBITMQ_USER"], Password: s.appEnv["RABBITMQ_PASSWORD"]},
		Port:   config.Port(s.rabbitmq.Port), VHost: "/", Queue: s.appEnv["RABBITMQ_QUEUE"],
	}
	conn, err := queue.Dial(ctx, c, "chaos")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return 0, err
	}
	q, err := ch.QueueDeclarePassive(c.Queue, true, false, false, false, nil)
	return q.Messages, err
}

// ask asks complex-app, not through the proxy, and decodes its answer.
func (s *system) ask(ctx context.Context, method, path string, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.appEnv["HTTP_ADDR"]+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, body)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(body, answer)
}

// stored reads the records from the database itself.
func (s *system) stored(ctx context.Context) (all []records.Record, err error) {
	store, err := records.Open(records.Config{
		Server: config.Server{Host: s.mongodb.Host}, Port: config.Port(s.mongodb.Port),
		DB: s.appEnv["MONGODB_DB"], Collection: s.appEnv["MONGODB_COLLECTION"],
	}, "chaos")
	if err != nil {
		return nil, err
	}
	defer store.Close()
	for r, err := range store.List(ctx, records.Query{}) {
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}
