// sandbox runs the whole system on one machine, with no cluster: private servers
// in place of RabbitMQ's and MongoDB's, and a stand-in for KEDA.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `sandbox runs the whole system on this machine, with no cluster.

  sandbox demo [flags]            send five events and show what becomes of them
  sandbox up [flags]              run until Ctrl-C
  sandbox exec -- command [args]  run a command beside RabbitMQ and MongoDB only,
                                  which it finds in RABBITMQ_HOST, MONGODB_HOST, …

Everything is private: free ports of 127.0.0.1 and a temporary folder.

Environment:
  SANDBOX_RABBITMQ   where RabbitMQ comes from: debian (the installed one) or docker
  SANDBOX_RABBITMQ_IMAGE   the image for docker, rabbitmq:4.3.6-management by default
  SANDBOX_MONGODB    docker for a real MongoDB, else it is an embedded FerretDB
  SANDBOX_MONGODB_IMAGE    the image for docker, mongo:8.0.32 by default
  MONGODB_HOST       a MongoDB of yours to use in their place, with MONGODB_PORT,
                     MONGODB_USER, MONGODB_PASSWORD, …
  PROCESSING_TIME    and every other variable in the ScaledJob's manifest, except
                     those of the two servers: wins over the manifest's value;
                     FAILURE_RATE=0.5 shows retries and dead letters
  RABBITMQ_MAX_ATTEMPTS, RABBITMQ_RETRY_MIN, RABBITMQ_RETRY_MAX
                     how often a message is tried, for both services
  OTEL_…             OpenTelemetry's variables, for all programs

Flags:
`

// settings are the flags and what the environment says.
type settings struct {
	deploy, bin, addr string
	command           []string // of exec
	environ           map[string]string
}

func main() {
	s := settings{environ: map[string]string{}}
	for _, entry := range os.Environ() {
		k, v, _ := strings.Cut(entry, "=")
		s.environ[k] = v
	}
	flags := flag.NewFlagSet("sandbox", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&s.deploy, "deploy", "deploy", "`folder` with the manifests of the ScaledJob, its ConfigMap and its Secret")
	flags.StringVar(&s.bin, "bin", "bin", "`folder` with the programs complex-app and processor-job")
	flags.StringVar(&s.addr, "addr", "", "`address` for complex-app (default a free port of 127.0.0.1, for up 8080 if it is free)")
	commands := map[string]func(context.Context, *sandbox) error{"demo": demo, "up": up, "exec": execute}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		flags.Usage()
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[2:]) // ends the program on an error
	s.command = flags.Args()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for an orderly end
	b := &sandbox{settings: s, out: os.Stdout, env: map[string]string{}}
	err := commands[os.Args[1]](ctx, b)
	b.close()

	var failed commandError
	switch {
	case errors.As(err, &failed):
		os.Exit(failed.code())
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "sandbox: stopped:", context.Cause(ctx))
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		os.Exit(1)
	}
}
