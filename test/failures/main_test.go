// Package failures_test makes each failure in docs/failures.md happen: to the
// programs as they are built, with a real broker and database, and a proxy in
// between that cuts and stalls their connections.
package failures_test

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/infra"
)

const (
	// programs names the folder of complex-app and processor-job. Without it they
	// are built.
	programs = "PROGRAMS"

	// maxAttempts is the default of RABBITMQ_MAX_ATTEMPTS.
	maxAttempts = 5

	// patience is how long a test waits for what must happen, on a machine that
	// is busy with many of them.
	patience = 2 * time.Minute
	tick     = 20 * time.Millisecond
	// slack is how much later than promised an answer may come there.
	slack = 5 * time.Second
)

func TestMain(m *testing.M) {
	flag.Parse()
	// They wait much more than they compute.
	if err := flag.Set("test.parallel", "10"); err != nil {
		panic(err)
	}
	toxics.Register(holdType, new(hold))
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// run builds the programs and starts the servers, unless the environment names
// them, and then runs the tests.
func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "failures-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if os.Getenv(programs) == "" {
		for _, name := range []string{"complex-app", "processor-job"} {
			build := exec.Command("go", "build", "-o", dir, ".")
			build.Dir, build.Env = "../../services/"+name, append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return 0, fmt.Errorf("build %s: %w\n%s", name, err, out)
			}
		}
		if err := os.Setenv(programs, dir); err != nil {
			return 0, err
		}
	}
	if os.Getenv("RABBITMQ_HOST") == "" {
		stop, err := startServers(dir)
		if err != nil {
			return 0, err
		}
		defer stop()
	}
	return m.Run(), nil
}

// startServers starts what make test would have started.
func startServers(dir string) (stop func(), err error) {
	db, err := infra.StartMongoDB(context.Background(), infra.MongoDBConfig{
		Dir: dir, Kind: os.Getenv("SANDBOX_MONGODB"), Say: func(text string) { fmt.Fprintln(os.Stderr, text) },
	})
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(dir, "rabbitmq")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	c := rabbitMQConfig(folder)
	broker, err := infra.StartRabbitMQ(context.Background(), c)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"RABBITMQ_HOST": broker.Host, "RABBITMQ_PORT": broker.Port,
		"RABBITMQ_USER": c.User, "RABBITMQ_PASSWORD": c.Password,
		"MONGODB_HOST": db.Host, "MONGODB_PORT": db.Port,
	} {
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	return func() { broker.Close(); db.Close() }, nil
}

func rabbitMQConfig(dir string) infra.RabbitMQConfig {
	return infra.RabbitMQConfig{
		Dir: dir, User: "failures", Password: rand.Text(), Kind: os.Getenv("SANDBOX_RABBITMQ"),
		Say: func(text string) { fmt.Fprintln(os.Stderr, text) },
	}
}

// node is a RabbitMQ for one test alone, which may stop it and worse.
type node struct {
	*infra.RabbitMQ
	queue queue.Config
}

// starts bounds the nodes that start at a time. Each needs seconds of a processor: of ten
// at once on two cores, some need more than the two minutes that a start may take.
var starts = make(chan struct{}, 2)

func startNode(t *testing.T) node {
	t.Helper()
	c := rabbitMQConfig(t.TempDir())
	starts <- struct{}{}
	broker, err := infra.StartRabbitMQ(t.Context(), c)
	<-starts
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	return node{broker, queue.Config{
		Server: config.Server{Host: broker.Host, User: c.User, Password: c.Password},
		Port:   config.Port(broker.Port), VHost: "/", Queue: "task_queue",
		MaxAttempts: maxAttempts, RetryMin: 100 * time.Millisecond, RetryMax: time.Minute,
	}}
}

// servers gives a test a queue and a collection of its own on the servers that
// all tests share.
func servers(t *testing.T) (queue.Config, records.Config) {
	t.Helper()
	q, db := contracttest.RabbitMQ(t), contracttest.MongoDB(t)
	require.NoError(t, contracttest.Consumer(t, q).Close(), "declares the queue")
	return q, db
}
