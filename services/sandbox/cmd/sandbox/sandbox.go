package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/infra"
	"keda-p2/services/sandbox/process"
	"keda-p2/services/sandbox/scaler"
)

const (
	appStartTimeout = 30 * time.Second
	appStopGrace    = 10 * time.Second
)

// sandbox is what runs, all of it in one temporary folder.
type sandbox struct {
	settings
	out io.Writer

	dir      string
	env      map[string]string // how the services find the servers
	rabbitmq *infra.RabbitMQ
	app      *process.Process
	url      string // of complex-app
	admin    string // where its metrics are
	metrics  bool   // RabbitMQ serves its own, too, for which it takes longer to start
	scaler   *scaler.Scaler
	closers  []func()
}

func (b *sandbox) onClose(f func()) { b.closers = append(b.closers, f) }

// close ends everything that was started, the last first.
func (b *sandbox) close() {
	for _, f := range slices.Backward(b.closers) {
		f()
	}
}

// startServers starts RabbitMQ, with one login, and MongoDB.
func (b *sandbox) startServers(ctx context.Context, user, password string) error {
	var err error
	if b.dir, err = os.MkdirTemp("", "keda-p2-"); err != nil {
		return fmt.Errorf("a temporary folder is needed: %w", err)
	}
	b.onClose(func() {
		if err := os.RemoveAll(b.dir); err != nil {
			b.say("The temporary folder stays behind: %v", err)
		}
	})
	if err := b.startMongoDB(ctx); err != nil {
		return err
	}
	began := time.Now()
	dir, err := b.mkdir("rabbitmq")
	if err != nil {
		return err
	}
	b.rabbitmq, err = infra.StartRabbitMQ(ctx, infra.RabbitMQConfig{
		Dir: dir, User: user, Password: password, Kind: b.environ["SANDBOX_RABBITMQ"],
		Say: func(text string) { b.say("%s", text) }, Metrics: b.metrics,
	})
	if err != nil {
		return cause(ctx, err)
	}
	b.onClose(b.rabbitmq.Close)
	b.env["RABBITMQ_HOST"], b.env["RABBITMQ_PORT"] = b.rabbitmq.Host, b.rabbitmq.Port
	b.env["RABBITMQ_USER"], b.env["RABBITMQ_PASSWORD"] = user, password
	b.say("RabbitMQ     %s:%s, up in %s", b.rabbitmq.Host, b.rabbitmq.Port, since(began))
	return nil
}

func (b *sandbox) startMongoDB(ctx context.Context) error {
	if b.environ["MONGODB_HOST"] != "" {
		for k, v := range b.environ {
			if strings.HasPrefix(k, "MONGODB_") {
				b.env[k] = v
			}
		}
		b.say("MongoDB      %s, as MONGODB_HOST says", b.env["MONGODB_HOST"])
		return nil
	}
	dir, err := b.mkdir("mongodb")
	if err != nil {
		return err
	}
	db, err := infra.StartMongoDB(ctx, infra.MongoDBConfig{
		Dir: dir, Kind: b.environ["SANDBOX_MONGODB"], Say: func(text string) { b.say("%s", text) },
	})
	if err != nil {
		return cause(ctx, err)
	}
	b.onClose(db.Close)
	b.env["MONGODB_HOST"], b.env["MONGODB_PORT"] = db.Host, db.Port
	b.env["MONGODB_USER"], b.env["MONGODB_PASSWORD"] = "", "" // it knows no logins
	b.say("MongoDB      %s:%s, %s", db.Host, db.Port, db.Name)
	return nil
}

// startAll starts the servers, complex-app and the stand-in for KEDA.
func (b *sandbox) startAll(ctx context.Context, log *slog.Logger) error {
	job, err := scaler.Load(b.deploy)
	if err != nil {
		return fmt.Errorf("%w (-deploy names the folder of the manifests)", err)
	}
	for _, note := range job.Notes {
		b.say("manifest     %s", note)
	}
	app, processor := filepath.Join(b.bin, "complex-app"), filepath.Join(b.bin, "processor-job")
	for _, program := range []string{app, processor} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("%w: run make build first (-bin names the folder of the programs)", err)
		}
	}
	if err := b.chooseAddress(); err != nil {
		return err
	}
	if err := b.startServers(ctx, job.Env["RABBITMQ_USER"], job.Env["RABBITMQ_PASSWORD"]); err != nil {
		return err
	}
	for k, v := range b.environ {
		_, ofJob := job.Env[k]
		if ofJob && !ofServer(k) || ofQueue(k) || strings.HasPrefix(k, "OTEL_") {
			b.env[k] = v
		}
	}
	if err := b.startApp(ctx, app, job.Env); err != nil {
		return cause(ctx, err)
	}
	logs, err := b.mkdir("jobs")
	if err != nil {
		return err
	}
	b.scaler, err = scaler.New(scaler.Config{Job: job, Processor: processor, Env: b.env, Dir: logs, Log: log})
	if err != nil {
		return err
	}
	// not ctx: it ends in its turn, while complex-app and the servers still run
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wait sync.WaitGroup
	wait.Go(func() { b.scaler.Run(running) })
	b.onClose(func() { stop(); wait.Wait() })
	b.say("scaler       in place of KEDA: strategy %s, every %s, at most %d Jobs", job.Strategy.Name, job.Interval, job.Strategy.MaxReplicas)
	return nil
}

// chooseAddress finds out where complex-app can listen, before anything starts.
func (b *sandbox) chooseAddress() error {
	if b.addr == "" {
		port, release, err := freeport.Reserve()
		if err != nil {
			return err
		}
		b.onClose(release)
		b.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	l, err := net.Listen("tcp", b.addr)
	if err != nil {
		return fmt.Errorf("complex-app: %w (-addr names another address)", err)
	}
	host, port, err := net.SplitHostPort(b.addr)
	if err != nil {
		return err
	}
	b.url = "http://" + net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)
	return l.Close()
}

// startApp starts complex-app, with a processor's variables for the servers.
func (b *sandbox) startApp(ctx context.Context, program string, env map[string]string) error {
	began := time.Now()
	env = maps.Clone(env)
	maps.Copy(env, b.env)
	env["HTTP_ADDR"] = b.addr
	port, release, err := freeport.Reserve()
	if err != nil {
		return err
	}
	b.onClose(release)
	b.admin = fmt.Sprintf("127.0.0.1:%d", port)
	env["ADMIN_ADDR"] = b.admin
	cmd := exec.Command(program)
	cmd.Env = process.Env(env)
	if b.app, err = process.Start(cmd, filepath.Join(b.dir, "complex-app.log")); err != nil {
		return err
	}
	b.onClose(func() { b.app.Stop(appStopGrace) })

	ctx, cancel := context.WithTimeout(ctx, appStartTimeout)
	defer cancel()
	for b.call(ctx, http.MethodGet, "/readyz", http.StatusOK, nil) != nil {
		select {
		case <-b.app.Done:
			return b.appEnded()
		case <-ctx.Done():
			return fmt.Errorf("complex-app is not ready after %s:\n%s", appStartTimeout, b.app.Tail(5))
		case <-time.After(50 * time.Millisecond):
		}
	}
	b.say("complex-app  %s, up in %s", b.url, since(began))
	return nil
}

func (b *sandbox) appEnded() error {
	return fmt.Errorf("complex-app has ended (%v):\n%s", b.app.Err(), b.app.Tail(5))
}

// untilFailure returns a context that ends with ctx, and with an error as its
// cause when complex-app or RabbitMQ ends.
func (b *sandbox) untilFailure(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-ctx.Done():
			cancel(nil)
		case <-b.app.Done:
			cancel(b.appEnded())
		case <-b.rabbitmq.Done():
			cancel(fmt.Errorf("RabbitMQ has ended:\n%s", b.rabbitmq.Tail(10)))
		}
	}()
	return ctx
}

// ofServer tells whether a variable says where RabbitMQ or MongoDB is. The
// sandbox has its own, whatever the user's environment says.
func ofServer(name string) bool {
	return strings.HasPrefix(name, "RABBITMQ_") && !ofQueue(name) || strings.HasPrefix(name, "MONGODB_")
}

// ofQueue tells whether a variable is an argument of the queue, which both services
// must have alike.
func ofQueue(name string) bool {
	return slices.Contains([]string{"RABBITMQ_MAX_ATTEMPTS", "RABBITMQ_RETRY_MIN", "RABBITMQ_RETRY_MAX"}, name)
}

func (b *sandbox) mkdir(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	return dir, os.Mkdir(dir, 0o700)
}

func (b *sandbox) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

// cause tells why ctx has ended in place of what came of that.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }
