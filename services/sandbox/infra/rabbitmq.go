// Package infra starts what the services need on this machine: a RabbitMQ node
// and a server for MongoDB's protocol, private ones on 127.0.0.1.
package infra

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"

	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
)

const (
	// a node is up after two seconds, and after fifteen on a busy machine
	startTimeout = 2 * time.Minute
	stopGrace    = 30 * time.Second
)

// RabbitMQConfig says what to start.
type RabbitMQConfig struct {
	Dir            string       // an empty folder for data, logs and configuration
	User, Password string       // the node's only login
	Kind           string       // debian or docker; empty takes what the machine has
	Say            func(string) // tells the user about what takes a while
	Metrics        bool         // serve Prometheus's metrics, too

	metricsPort int // 0 without them
}

// advanced is the node's configuration, as Erlang's terms.
func (c RabbitMQConfig) advanced(listener, metrics string) []byte {
	// bytes as numbers, such as <<80,64,115>>: they need no escaping
	text := func(s string) string {
		return "<<" + strings.ReplaceAll(strings.Trim(fmt.Sprint([]byte(s)), "[]"), " ", ",") + ">>"
	}
	return fmt.Appendf(nil, "[{rabbit, [{tcp_listeners, [%s]}, {loopback_users, []}, {default_user, %s}, {default_pass, %s}]}%s].\n",
		listener, text(c.User), text(c.Password), metrics)
}

// RabbitMQ is a node of one's own.
type RabbitMQ struct {
	Host, Port string
	MetricsURL string // when they were asked for

	c       RabbitMQConfig
	node    node
	server  *process.Process // as started last
	release func()           // gives the ports back
}

// node is one way to run the server.
type node interface {
	start() (*process.Process, error)
	// stop ends the server, in order or as a crash would.
	stop(server *process.Process, crash bool)
	// ctl is rabbitmqctl for this node.
	ctl(ctx context.Context, args ...string) *exec.Cmd
	// close ends what the node needs besides the server.
	close()
}

// StartRabbitMQ starts a node and waits until it takes logins. The caller must
// Close it.
func StartRabbitMQ(ctx context.Context, c RabbitMQConfig) (*RabbitMQ, error) {
	newNode, err := choose(ctx, c)
	if err != nil {
		return nil, err
	}
	port, release, err := freeport.Reserve()
	if err != nil {
		return nil, err
	}
	r := &RabbitMQ{Host: "127.0.0.1", Port: strconv.Itoa(port), release: release}
	if c.Metrics {
		var releaseMetrics func()
		if c.metricsPort, releaseMetrics, err = freeport.Reserve(); err != nil {
			release()
			return nil, err
		}
		r.release = func() { release(); releaseMetrics() }
		r.MetricsURL = fmt.Sprintf("http://127.0.0.1:%d/metrics/per-object", c.metricsPort)
	}
	n, err := newNode(ctx, c, port)
	if err != nil {
		r.release()
		return nil, fmt.Errorf("RabbitMQ: %w", err)
	}
	r.c, r.node = c, n
	if err := r.Start(ctx); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// choose finds out how this machine can run a node, and installs the package
// where it must and may.
func choose(ctx context.Context, c RabbitMQConfig) (func(context.Context, RabbitMQConfig, int) (node, error), error) {
	var problems []error
	switch c.Kind {
	case "", "debian":
		if _, err := os.Stat(debianServer); err == nil {
			return newDebianNode, nil
		}
		problems = append(problems, errors.New("RabbitMQ is not installed: as root, run apt-get install rabbitmq-server"))
		if _, err := exec.LookPath("apt-get"); err == nil && os.Getuid() == 0 {
			if err = install(ctx, c.Say); err == nil {
				return newDebianNode, nil
			}
			problems = append(problems, fmt.Errorf("that was tried: %w", err))
		}
		if c.Kind != "" {
			break
		}
		fallthrough
	case "docker":
		err := docker(ctx, "info")
		if err == nil {
			return newDockerNode, nil
		}
		problems = append(problems, fmt.Errorf("RabbitMQ would run in Docker, but that does not work: %w", err))
	default:
		problems = append(problems, fmt.Errorf("RabbitMQ comes from debian or docker, not from %q", c.Kind))
	}
	return nil, errors.Join(problems...)
}

// Start starts the node again after Stop or Kill, on the same port and data,
// and waits until it takes logins.
func (r *RabbitMQ) Start(ctx context.Context) error {
	server, err := r.node.start()
	if err != nil {
		return fmt.Errorf("start RabbitMQ: %w", err)
	}
	r.server = server
	login := queue.Config{
		Server: config.Server{Host: r.Host, User: r.c.User, Password: r.c.Password},
		Port:   config.Port(r.Port), VHost: "/",
	}
	return untilReady(ctx, "RabbitMQ", server, func(ctx context.Context) error {
		conn, err := queue.Dial(ctx, login, "sandbox")
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// untilReady tries until the server answers. The name is for its error.
func untilReady(ctx context.Context, name string, server *process.Process, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-server.Done:
			return fmt.Errorf("%s has ended while it started:\n%s", name, server.Tail(15))
		case <-ctx.Done():
			return fmt.Errorf("%s does not start: %w, %w\n%s", name, ctx.Err(), err, server.Tail(15))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop ends the node in order. Start brings it back with its data.
func (r *RabbitMQ) Stop() { r.node.stop(r.server, false) }

// Kill ends the node as a crash would. Start brings it back with what it had
// written. RabbitMQ's quorum queues keep their directory in dets tables, which
// Erlang writes when they have been left alone for a while: a crash within a new
// queue's first two seconds leaves one that never works again. It is written
// first, because tests are about the queues of users, which are older.
func (r *RabbitMQ) Kill() {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	// a node that is not up has no new queue
	_ = r.Ctl(ctx, "eval", "[dets:sync(T) || T <- dets:all()].")
	r.node.stop(r.server, true)
}

// Ctl runs rabbitmqctl on the node. The error has what it printed.
func (r *RabbitMQ) Ctl(ctx context.Context, args ...string) error {
	if out, err := r.node.ctl(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("rabbitmqctl %s: %w: %s", args[0], err, out)
	}
	return nil
}

// Close ends the node for good. Its folder may be removed then.
func (r *RabbitMQ) Close() {
	if r.server != nil {
		r.node.stop(r.server, true)
	}
	r.node.close()
	r.release()
}

// Done is closed when the node that was started last has ended.
func (r *RabbitMQ) Done() <-chan struct{} { return r.server.Done }

// Tail returns the last n lines of the node's log.
func (r *RabbitMQ) Tail(n int) string { return r.server.Tail(n) }
