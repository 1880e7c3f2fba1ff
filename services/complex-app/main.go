// complex-app is the HTTP service: POST /send publishes an event to RabbitMQ,
// GET /data reads the records from MongoDB.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/complex-app/live"
	"keda-p2/services/complex-app/metrics"
	"keda-p2/services/complex-app/observe"
	"keda-p2/services/complex-app/page"
	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/contract/telemetry"
)

// version is set by the linker.
var version = "dev"

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	indexRetry        = 2 * time.Second
	closeTimeout      = 5 * time.Second
)

func main() {
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *showVersion {
		fmt.Println("complex-app", version)
		return
	}
	var s settings
	if err := config.Load(&s); err != nil {
		fmt.Fprintln(os.Stderr, "complex-app:", err)
		os.Exit(1)
	}
	// The heap in use is a few megabytes: with Go's default the collector would run
	// dozens of times a second under load. GOMEMLIMIT still holds.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	log := telemetry.NewLogger(os.Stdout, s.LogLevel, s.LogFormat)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s, log); err != nil {
		log.Error("failed", "reason", err.Error())
		os.Exit(1)
	}
}

// run serves until ctx ends. Then it takes no new request, finishes those in
// flight with their confirms, and only after that closes the connections.
func run(ctx context.Context, s settings, log *slog.Logger) error {
	tracing := telemetry.Open(os.Getenv, "complex-app", version, log)
	defer tracing.Close() // last: the requests in flight have their spans

	store, err := records.Open(s.MongoDB, "complex-app")
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = store.Close(ctx) // nothing is in flight any more
	}()

	// the connections outlive ctx: requests in flight still need them
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	publisher := queue.NewPublisher(s.RabbitMQ, "complex-app", s.ConfirmTimeout, log)
	registry := &metrics.Registry{}
	observed := observe.NewPublisher(publisher, s.RabbitMQ.Queue, registry, tracing)
	observe.Ready(registry, publisher.Ready, store.Ping)
	observe.AddRecords(registry, store, log)
	published, indexed := make(chan struct{}), make(chan struct{})
	go func() { defer close(published); publisher.Run(background) }()
	go func() { defer close(indexed); createIndexes(background, store, log) }()
	defer func() { stop(); <-published; <-indexed }()

	listener, err := net.Listen("tcp", s.HTTPAddr)
	if err != nil {
		return fmt.Errorf("HTTP_ADDR: %w", err)
	}
	files, err := page.Files()
	if err != nil {
		return err
	}
	dead := queue.DeadLetterQueue{Config: s.RabbitMQ}
	view := live.New(publisher, &queue.Counter{Config: s.RabbitMQ, Name: "complex-app's page"}, store, dead, log)
	defer view.Close() // before the connections are closed
	handler := api.New(ctx, observed, store, dead, view, files, log, observe.HTTP(registry, tracing))
	stopAdmin, err := startAdmin(s.AdminAddr, registry, handler, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer stopAdmin()
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	server.RegisterOnShutdown(view.Close) // else the open pages would hold it up
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("listening", "address", listener.Addr().String(), "version", version)

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Info("shutting down", "reason", context.Cause(ctx).Error())
	deadline, cancel := context.WithTimeout(background, s.ShutdownTimeout)
	defer cancel()
	if err := server.Shutdown(deadline); err != nil {
		return errors.Join(fmt.Errorf("requests in flight after %s: %w", s.ShutdownTimeout, err), server.Close())
	}
	return nil
}

// createIndexes tries until MongoDB is there and has them.
func createIndexes(ctx context.Context, store *records.Store, log *slog.Logger) {
	for {
		err := store.CreateIndexes(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		log.Warn("no indexes in MongoDB yet, will try again", "reason", err.Error(), "in", indexRetry.String())
		select {
		case <-time.After(indexRetry):
		case <-ctx.Done():
		}
	}
}
