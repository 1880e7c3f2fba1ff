package infra

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"keda-p2/services/sandbox/process"
)

// defaultImage is the version that users run.
const defaultImage = "rabbitmq:4.3.6-management"

// dockerNode is a container in which the server is started and stopped, so that
// the data outlive the server. The container's own program only reads its
// input: when this process dies, even killed, the input ends and the container
// with it.
type dockerNode struct {
	name, dir string
	container *process.Process
}

func docker(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("docker %s: %w: %s", args[0], err, lastLine(out))
	}
	return nil
}

func newDockerNode(ctx context.Context, c RabbitMQConfig, port int) (node, error) {
	image := cmp.Or(os.Getenv("SANDBOX_RABBITMQ_IMAGE"), defaultImage)
	c.Say("RabbitMQ runs in a Docker container. When its image " + image + " is not here yet, Docker pulls it now.")
	n := &dockerNode{name: fmt.Sprintf("keda-p2-sandbox-%d", port), dir: c.Dir}
	args := []string{"run", "--rm", "--interactive", "--init", "--name", n.name,
		"--publish", fmt.Sprintf("127.0.0.1:%d:5672", port),
		// as for a debianNode
		"--env", "RUNNING_UNDER_SYSTEMD=true", "--env", "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD=very_short"}
	if c.Metrics { // the image serves them always
		args = append(args, "--publish", fmt.Sprintf("127.0.0.1:%d:15692", c.metricsPort))
	}
	cmd := exec.Command("docker", append(args, "--entrypoint", "cat", image)...)
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	var err error
	if n.container, err = process.Start(cmd, filepath.Join(n.dir, "container.log")); err != nil {
		return nil, err
	}
	for docker(ctx, "exec", n.name, "true") != nil {
		select {
		case <-n.container.Done:
			return nil, fmt.Errorf("docker run: %v\n%s", n.container.Err(), n.container.Tail(3))
		case <-ctx.Done():
			n.close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	// not as variables: docker inspect shows those
	configure := exec.CommandContext(ctx, "docker", "exec", "--interactive", n.name, "sh", "-c", "cat >/etc/rabbitmq/advanced.config")
	configure.Stdin = bytes.NewReader(c.advanced("5672", ""))
	if out, err := configure.CombinedOutput(); err != nil {
		n.close()
		return nil, fmt.Errorf("docker exec: %w: %s", err, lastLine(out))
	}
	return n, nil
}

func (n *dockerNode) start() (*process.Process, error) {
	cmd := exec.Command("docker", "exec", n.name, "sh", "-c", "echo $$ >/tmp/server.pid; exec docker-entrypoint.sh rabbitmq-server")
	return process.Start(cmd, filepath.Join(n.dir, "rabbitmq-server.log"))
}

func (n *dockerNode) stop(server *process.Process, crash bool) {
	signal := "-TERM"
	if crash {
		signal = "-KILL"
	}
	// signals do not pass through docker exec
	_ = docker(context.Background(), "exec", n.name, "sh", "-c", "kill "+signal+" $(cat /tmp/server.pid)")
	select {
	case <-server.Done:
	case <-time.After(stopGrace):
		server.Kill()
	}
}

func (n *dockerNode) ctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "docker", append([]string{"exec", n.name, "rabbitmqctl"}, args...)...)
}

func (n *dockerNode) close() {
	_ = docker(context.Background(), "rm", "--force", "--volumes", n.name)
	n.container.Stop(stopGrace)
}
