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

// The versions that users run, as in deploy/infrastructure/.
const (
	// renovate: datasource=docker depName=rabbitmq
	rabbitMQImage = "rabbitmq:4.3.6-management"
	// renovate: datasource=docker depName=mongo
	mongoDBImage = "mongo:8.0.32"
)

// container is one in which a server is started and stopped, so that the data
// outlive the server. The container's own program only reads its input: when this
// process dies, even killed, the input ends and the container with it.
type container struct {
	name, dir string
	process   *process.Process
}

func docker(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("docker %s: %w: %s", args[0], err, lastLine(out))
	}
	return nil
}

// runContainer starts one of the image, with further options of docker run.
func runContainer(ctx context.Context, image, name, dir string, options ...string) (*container, error) {
	c := &container{name: name, dir: dir}
	args := append([]string{"run", "--rm", "--interactive", "--init", "--name", name, "--entrypoint", "cat"}, options...)
	cmd := exec.Command("docker", append(args, image)...)
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	var err error
	if c.process, err = process.Start(cmd, filepath.Join(dir, "container.log")); err != nil {
		return nil, err
	}
	for docker(ctx, "exec", name, "true") != nil {
		select {
		case <-c.process.Done:
			return nil, fmt.Errorf("docker run: %v\n%s", c.process.Err(), c.process.Tail(3))
		case <-ctx.Done():
			c.close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return c, nil
}

// serve starts the server, which is what the shell's command becomes.
func (c *container) serve(command string) (*process.Process, error) {
	cmd := exec.Command("docker", "exec", c.name, "sh", "-c", "echo $$ >/tmp/server.pid; exec "+command)
	return process.Start(cmd, filepath.Join(c.dir, "server.log"))
}

func (c *container) stop(server *process.Process, crash bool) {
	signal := "-TERM"
	if crash {
		signal = "-KILL"
	}
	// signals do not pass through docker exec
	_ = docker(context.Background(), "exec", c.name, "sh", "-c", "kill "+signal+" $(cat /tmp/server.pid)")
	select {
	case <-server.Done:
	case <-time.After(stopGrace):
		server.Kill()
	}
}

func (c *container) close() {
	_ = docker(context.Background(), "rm", "--force", "--volumes", c.name)
	c.process.Stop(stopGrace)
}

// dockerNode is a node of RabbitMQ in a container.
type dockerNode struct{ *container }

func newDockerNode(ctx context.Context, c RabbitMQConfig, port int) (node, error) {
	image := cmp.Or(os.Getenv("SANDBOX_RABBITMQ_IMAGE"), rabbitMQImage)
	c.Say("RabbitMQ runs in a Docker container. When its image " + image + " is not here yet, Docker pulls it now.")
	options := []string{"--publish", fmt.Sprintf("127.0.0.1:%d:5672", port),
		// as for a debianNode
		"--env", "RUNNING_UNDER_SYSTEMD=true", "--env", "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD=very_short"}
	if c.Metrics { // the image serves them always
		options = append(options, "--publish", fmt.Sprintf("127.0.0.1:%d:15692", c.metricsPort))
	}
	in, err := runContainer(ctx, image, fmt.Sprintf("keda-p2-sandbox-%d", port), c.Dir, options...)
	if err != nil {
		return nil, err
	}
	// not as variables: docker inspect shows those
	configure := exec.CommandContext(ctx, "docker", "exec", "--interactive", in.name, "sh", "-c", "cat >/etc/rabbitmq/advanced.config")
	configure.Stdin = bytes.NewReader(c.advanced("5672", ""))
	if out, err := configure.CombinedOutput(); err != nil {
		in.close()
		return nil, fmt.Errorf("docker exec: %w: %s", err, lastLine(out))
	}
	return dockerNode{in}, nil
}

func (n dockerNode) start() (*process.Process, error) {
	return n.serve("docker-entrypoint.sh rabbitmq-server")
}

func (n dockerNode) ctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "docker", append([]string{"exec", n.name, "rabbitmqctl"}, args...)...)
}
