package infra

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/records"

	"keda-p2/services/sandbox/freeport"
)

// MongoDBConfig says what to start.
type MongoDBConfig struct {
	Dir  string       // a folder for data and log
	Kind string       // docker, or empty for the embedded FerretDB
	Say  func(string) // tells the user about what takes a while
}

// MongoDB is a server for MongoDB's protocol that knows no logins.
type MongoDB struct {
	Host, Port string // of the server that was started last
	Name       string // what it is, for people

	start func(context.Context) error
	stop  func()
	close func()
}

// StartMongoDB starts a server. The caller must Close it. It is not safe for
// concurrent use, as StartFerretDB is not.
func StartMongoDB(ctx context.Context, c MongoDBConfig) (*MongoDB, error) {
	m := &MongoDB{}
	var err error
	switch c.Kind {
	case "":
		m.embedded(c)
	case "docker":
		err = m.docker(ctx, c)
	default:
		err = fmt.Errorf("it comes from docker, or is embedded when nothing is set, not from %q", c.Kind)
	}
	if err == nil {
		if err = m.start(ctx); err != nil {
			m.close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("MongoDB: %w", err)
	}
	return m, nil
}

// Stop ends the server, and with it every connection, wherever it is in its work.
// Start brings it back with its data, it may be on another port.
func (m *MongoDB) Stop() { m.stop() }

// Start starts the server again after Stop.
func (m *MongoDB) Start(ctx context.Context) error { return m.start(ctx) }

// Close ends the server for good. Its folder may be removed then.
func (m *MongoDB) Close() { m.close() }

func (m *MongoDB) embedded(c MongoDBConfig) {
	m.Name = "an embedded FerretDB"
	m.start = func(context.Context) error {
		db, err := StartFerretDB(c.Dir)
		if err == nil {
			m.Host, m.Port, m.stop = db.Host, db.Port, db.Close
			m.close = db.Close
		}
		return err
	}
	m.close = func() {}
}

func (m *MongoDB) docker(ctx context.Context, c MongoDBConfig) error {
	if err := docker(ctx, "info"); err != nil {
		return fmt.Errorf("it would run in Docker, but that does not work: %w", err)
	}
	image := cmp.Or(os.Getenv("SANDBOX_MONGODB_IMAGE"), mongoDBImage)
	c.Say("MongoDB runs in a Docker container. When its image " + image + " is not here yet, Docker pulls it now.")
	port, release, err := freeport.Reserve()
	if err != nil {
		return err
	}
	in, err := runContainer(ctx, image, fmt.Sprintf("keda-p2-sandbox-%d", port), c.Dir, "--publish", fmt.Sprintf("127.0.0.1:%d:27017", port))
	if err != nil {
		release()
		return err
	}
	m.close = func() { in.close(); release() }
	// the image's own: it gives the data to their user and takes that user
	entrypoint, err := exec.CommandContext(ctx, "docker", "image", "inspect", "--format", "{{range .Config.Entrypoint}}{{.}} {{end}}", image).Output()
	if err != nil {
		m.close()
		return fmt.Errorf("docker image inspect: %w", err)
	}
	m.Host, m.Port, m.Name = "127.0.0.1", strconv.Itoa(port), image+" in a container"
	m.start = func(ctx context.Context) error {
		server, err := in.serve(lastLine(entrypoint) + " mongod")
		if err != nil {
			return err
		}
		m.stop = func() { in.stop(server, false) }
		store, err := records.Open(records.Config{
			Server: config.Server{Host: m.Host}, Port: config.Port(m.Port), DB: "admin", Collection: "none", AuthSource: "admin",
		}, "sandbox")
		if err != nil {
			return err
		}
		defer func() { _ = store.Close() }()
		return untilReady(ctx, "it", server, store.Ping)
	}
	return nil
}
