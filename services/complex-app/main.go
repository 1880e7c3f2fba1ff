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
	"sync"
	"syscall"
	"time"

	"keda-p2/services/complex-app/api"
	"keda-p2/services/complex-app/observe" // optional: observe
	"keda-p2/services/complex-app/page"    // optional: page
	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/telemetry"
)

// version is set by the linker.
var version = "dev"

const indexRetry = 2 * time.Second

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
	log := telemetry.NewLogger(os.Stdout, s.LogLevel, s.LogFormat)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s, log); err != nil {
		log.Error("failed", "reason", err.Error())
		os.Exit(1)
	}
}

// run serves until ctx ends. First it makes all that can fail, so that a mistake ends
// the process at once; then it starts what runs beside the requests; then it serves.
// No server has to be there yet: the service is not ready until they are.
//
// To do without the metrics and traces of requests, or without the page, delete the
// folder observe or page, and the lines that are marked "optional:" with its name.
func run(ctx context.Context, s settings, log *slog.Logger) error {
	traces := telemetry.StartTraces(ctx, "complex-app", version, log)
	store, err := records.Open(s.MongoDB, "complex-app")
	if err != nil {
		return err
	}
	store.Foreign = func(id, reason string) {
		log.Warn("the collection has documents that are no records; they are passed over", "first", id, "reason", reason)
	}
	listener, err := net.Listen("tcp", s.HTTPAddr)
	if err != nil {
		return fmt.Errorf("HTTP_ADDR: %w", err)
	}
	var adminListener net.Listener
	if s.AdminAddr != "" {
		if adminListener, err = net.Listen("tcp", s.AdminAddr); err != nil {
			return fmt.Errorf("ADMIN_ADDR: %w", err)
		}
	}

	publisher := queue.NewPublisher(s.RabbitMQ, "complex-app", s.ConfirmTimeout, log)
	deadLetters := queue.NewDeadLetters(s.RabbitMQ, "complex-app's dead letters")
	var events api.Publisher = publisher
	var middlewares []func(http.Handler) http.Handler
	registry := observe.NewRegistry()                                            // optional: observe
	events = observe.NewPublisher(publisher, s.RabbitMQ.Queue, registry, traces) // optional: observe
	middlewares = append(middlewares, observe.HTTP(registry, traces))            // optional: observe
	observe.Ready(registry, publisher.Ready, store.Ping)                         // optional: observe
	observe.Records(registry, store, log)                                        // optional: observe
	router := api.New(events, store, deadLetters, log, s.TrustedOrigins, s.AllowedHosts, middlewares...)
	counter := &queue.Counter{Config: s.RabbitMQ, Name: "complex-app's page"} // optional: page
	view := page.New(publisher, counter, store, deadLetters, log)             // optional: page
	view.Mount(router)                                                        // optional: page

	// These outlive ctx: requests in flight still need the connections.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { publisher.Run(background) })
	running.Go(func() { createIndexes(background, store, log) })
	running.Go(func() { view.Run(background) }) // optional: page

	// The health and the metrics have a port of their own, which no Service names: they are
	// for the cluster and not for clients. It answers as long as the process lives, also
	// while requests in flight end. This is not chi's router: the API's would take its routes
	// for part of their own.
	adminRoutes := http.NewServeMux()
	adminRoutes.Handle("GET /healthz", router)
	adminRoutes.Handle("GET /readyz", router)
	adminRoutes.Handle("GET /metrics", observe.Handler(registry)) // optional: observe
	server, admin := newServer(router, log), newServer(adminRoutes, log)
	admin.ReadTimeout = 3 * readHeaderTimeout // longer than a scrape takes
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	if adminListener != nil {
		go func() { failed <- admin.Serve(adminListener) }()
		log.Info("serving metrics", "address", adminListener.Addr().String())
	}
	log.Info("listening", "address", listener.Addr().String(), "version", version)

	select {
	case err = <-failed:
	case <-ctx.Done():
		log.Info("shutting down", "reason", context.Cause(ctx).Error())
	}
	finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.ShutdownTimeout)
	defer cancel()
	// Each step needs those after it: requests in flight still publish and read.
	for _, step := range []struct {
		name string
		stop func() error
	}{
		{"finish the requests in flight", func() error { return server.Shutdown(finishing) }},
		{"close the connections that remain", server.Close},
		{"end what runs beside them, and RabbitMQ's connections", func() error {
			stopBackground()
			running.Wait()
			deadLetters.Close()
			return nil
		}},
		{"close MongoDB's connections", store.Close},
		{"end the health checks and metrics", admin.Close},
		{"deliver the traces", func() error { traces.Stop(); return nil }},
	} {
		if stopping := step.stop(); stopping != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", step.name, stopping))
		}
	}
	return err
}

// createIndexes tries until MongoDB is there and has them.
func createIndexes(ctx context.Context, store *records.Store, log *slog.Logger) {
	for err := store.CreateIndexes(ctx); err != nil && ctx.Err() == nil; err = store.CreateIndexes(ctx) {
		log.Warn("no indexes in MongoDB yet, will try again", "reason", err.Error(), "in", indexRetry.String())
		select {
		case <-time.After(indexRetry):
		case <-ctx.Done():
		}
	}
}

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	// writeTimeout cuts off a client that does not read its answers. The API extends it
	// for answers that take longer.
	writeTimeout = 10 * time.Second
	// maxHeaderBytes leaves room for the longest query, of 64 KiB, and little more: by
	// default each of many connections could fill 1 MB.
	maxHeaderBytes = 72 << 10
)

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
