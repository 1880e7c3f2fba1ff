package infra

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
)

// debianServer is the server itself. The one in the PATH changes to the user
// rabbitmq and is meant for the system's node, as is rabbitmqctl's.
const (
	debianServer = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	debianCtl    = "/usr/lib/rabbitmq/bin/rabbitmqctl"
)

// debianNode is a node of the installed RabbitMQ that shares nothing with any
// other: not even epmd, where Erlang's nodes find each other.
type debianNode struct {
	dir     string
	env     map[string]string
	epmd    *process.Process
	release []func() // what gives the ports back
}

func newDebianNode(ctx context.Context, c RabbitMQConfig, port int) (_ node, err error) {
	n := &debianNode{dir: c.Dir}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	distPort, err := n.reserve()
	if err != nil {
		return nil, err
	}
	epmdPort, err := n.reserve()
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(c.Dir, name) }
	n.env = map[string]string{
		"PATH":                                os.Getenv("PATH"),
		"LANG":                                "C.UTF-8",
		"HOME":                                c.Dir, // for Erlang's cookie
		"ERL_CRASH_DUMP":                      "/dev/null",
		"ERL_EPMD_PORT":                       strconv.Itoa(epmdPort),
		"ERL_EPMD_ADDRESS":                    "127.0.0.1",
		"RABBITMQ_NODENAME":                   "sandbox@localhost",
		"RABBITMQ_DIST_PORT":                  strconv.Itoa(distPort),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
		"RABBITMQ_MNESIA_BASE":                in("data"),
		"RABBITMQ_LOG_BASE":                   in("log"),
		// nothing of the machine's own configuration
		"RABBITMQ_CONF_ENV_FILE":        "/dev/null",
		"RABBITMQ_CONFIG_FILE":          in("rabbitmq"),
		"RABBITMQ_CONFIG_FILES":         in("conf.d"),
		"RABBITMQ_ADVANCED_CONFIG_FILE": in("advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE": in("plugins"),
		// the script becomes the server then and does not stay as its parent, so
		// that signals reach it
		"RUNNING_UNDER_SYSTEMD": "true",
		// RabbitMQ's default, none, doubles the time to start where it is slow to
		// wake a thread, as on virtual machines: four seconds for two
		"RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": "very_short",
	}
	listener, plugins, metrics := fmt.Sprintf(`{"127.0.0.1", %d}`, port), "[].\n", ""
	if c.Metrics {
		plugins = "[rabbitmq_prometheus].\n"
		metrics = fmt.Sprintf(`, {rabbitmq_prometheus, [{tcp_config, [{ip, "127.0.0.1"}, {port, %d}]}]}`, c.metricsPort)
	}
	if err := os.WriteFile(in("advanced.config"), c.advanced(listener, metrics), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(in("plugins"), []byte(plugins), 0o600); err != nil {
		return nil, err
	}

	// As a child, and up before the node, which would otherwise start one as a
	// daemon that stays behind.
	n.epmd, err = n.run("epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(epmdPort))
	if err != nil {
		return nil, err
	}
	for {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(epmdPort)))
		if err == nil {
			return n, conn.Close()
		}
		select {
		case <-n.epmd.Done:
			return nil, fmt.Errorf("epmd has ended: %v %s", n.epmd.Err(), n.epmd.Tail(1))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (n *debianNode) reserve() (int, error) {
	port, release, err := freeport.Reserve()
	if err == nil {
		n.release = append(n.release, release)
	}
	return port, err
}

func (n *debianNode) run(program string, args ...string) (*process.Process, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = n.dir, process.Env(n.env)
	return process.Start(cmd, filepath.Join(n.dir, filepath.Base(program)+".log"))
}

func (n *debianNode) start() (*process.Process, error) { return n.run(debianServer) }

func (n *debianNode) stop(server *process.Process, crash bool) {
	if crash {
		server.Kill()
	} else {
		server.Stop(stopGrace)
	}
}

func (n *debianNode) ctl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, debianCtl, args...)
	cmd.Dir, cmd.Env = n.dir, process.Env(n.env)
	return cmd
}

func (n *debianNode) close() {
	if n.epmd != nil {
		n.epmd.Kill()
	}
	for _, release := range n.release {
		release()
	}
}
