package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"keda-p2/services/contract/queue"
	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
)

const (
	patience = time.Minute
	tick     = 10 * time.Millisecond
	grace    = 10 * time.Second
)

func (b *bench) program(name string) string { return filepath.Join(b.bin, name) }

// env is what every program gets, and what else is given.
func (b *bench) env(more map[string]string) []string {
	env := map[string]string{
		"PATH": os.Getenv("PATH"), "HOME": os.Getenv("HOME"), "TMPDIR": os.TempDir(),
		"RABBITMQ_HOST": b.RabbitMQ.Host, "RABBITMQ_PORT": b.RabbitMQ.Port,
		"RABBITMQ_USER": b.RabbitMQ.User, "RABBITMQ_PASSWORD": b.RabbitMQ.Password, "RABBITMQ_QUEUE": b.RabbitMQ.Queue,
		"MONGODB_HOST": b.MongoDB.Host, "MONGODB_PORT": b.MongoDB.Port,
		"MONGODB_USER": b.MongoDB.User, "MONGODB_PASSWORD": b.MongoDB.Password,
		"MONGODB_DB": b.MongoDB.DB, "MONGODB_COLLECTION": b.MongoDB.Collection,
	}
	maps.Copy(env, more)
	return process.Env(env)
}

// output runs a program to its end and returns what it has printed.
func output(ctx context.Context, env []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, failed.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(program), err)
	}
	return out, nil
}

// server is a program that answers HTTP.
type server struct {
	url     string
	process *process.Process
}

func (s server) stop() { s.process.Stop(grace) }

// start starts a program that listens on the given address.
func (b *bench) start(ctx context.Context, addr, ready string, env []string, program string, args ...string) (server, error) {
	cmd := exec.Command(b.program(program), args...)
	cmd.Env = env
	p, err := process.Start(cmd, filepath.Join(b.dir, program+".log"))
	if err != nil {
		return server{}, err
	}
	s := server{"http://" + addr, p}
	err = until(ctx, func() (bool, error) {
		select {
		case <-p.Done:
			return false, fmt.Errorf("%s has ended: %v\n%s", program, p.Err(), p.Tail(5))
		default:
		}
		response, err := http.Get(s.url + ready)
		if err != nil {
			return false, nil
		}
		return response.StatusCode < http.StatusInternalServerError, response.Body.Close()
	})
	if err != nil {
		s.stop()
		return server{}, fmt.Errorf("start %s: %w", program, err)
	}
	return s, nil
}

// startApp starts complex-app as it is shipped, with its metrics and page.
func (b *bench) startApp(ctx context.Context, more map[string]string) (server, error) {
	addr, err := address()
	if err != nil {
		return server{}, err
	}
	env := map[string]string{"HTTP_ADDR": addr, "ADMIN_ADDR": "127.0.0.1:0"}
	maps.Copy(env, more)
	return b.start(ctx, addr, "/readyz", b.env(env), "complex-app")
}

// startBare starts the least handler that publishes.
func (b *bench) startBare(ctx context.Context) (server, error) {
	addr, err := address()
	if err != nil {
		return server{}, err
	}
	return b.start(ctx, addr, "/", b.env(nil), "raw", "-addr", addr, "serve")
}

// address returns one that is free.
func address() (string, error) {
	port, release, err := freeport.Reserve()
	if err != nil {
		return "", err
	}
	release()
	return "127.0.0.1:" + strconv.Itoa(port), nil
}

// until waits for a condition.
func until(ctx context.Context, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if ok, err := holds(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// channel opens a connection and a channel on it. The caller must close the first.
func (b *bench) channel(ctx context.Context) (*amqp.Connection, *amqp.Channel, error) {
	conn, err := queue.Dial(ctx, b.RabbitMQ, "bench")
	if err != nil {
		return nil, nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		_ = conn.Close()
	}
	return conn, ch, err
}

// purge empties the queue.
func (b *bench) purge(ctx context.Context) error {
	conn, ch, err := b.channel(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = ch.QueuePurge(b.RabbitMQ.Queue, false)
	return err
}

// printEnvironment says where the figures come from.
func (b *bench) printEnvironment(ctx context.Context) error {
	conn, err := queue.Dial(ctx, b.RabbitMQ, "bench")
	if err != nil {
		return err
	}
	defer conn.Close()
	cpu := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(model)
				break
			}
		}
	}
	b.print("%s, %d cores of %s, %s, RabbitMQ %v; median of %d rounds (least–greatest)\n",
		time.Now().Format(time.DateOnly), runtime.NumCPU(), cpu, runtime.Version(), conn.Properties["version"], b.rounds)
	return nil
}
