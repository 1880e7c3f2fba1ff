// scaler is the sandbox's stand-in for KEDA alone, for Docker Compose.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"keda-p2/services/sandbox/scaler"
)

func main() {
	deploy := flag.String("deploy", "deploy", "`folder` with the manifests of the ScaledJob, its ConfigMap and its Secret")
	processor := flag.String("processor", "processor-job", "`program` that takes one message and exits")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "scaler starts a processor for each message, as the ScaledJob's manifest says.\n"+
			"Variables RABBITMQ_… and MONGODB_…, and those that the manifest has, win over its values.")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *deploy, *processor, os.Environ()); err != nil {
		fmt.Fprintln(os.Stderr, "scaler:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, deploy, processor string, environ []string) error {
	job, err := scaler.Load(deploy)
	if err != nil {
		return err
	}
	env := map[string]string{}
	for _, entry := range environ {
		k, v, _ := strings.Cut(entry, "=")
		_, ofJob := job.Env[k]
		if ofJob || strings.HasPrefix(k, "RABBITMQ_") || strings.HasPrefix(k, "MONGODB_") {
			env[k] = v
		}
	}
	dir, err := os.MkdirTemp("", "scaler-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	s, err := scaler.New(scaler.Config{Job: job, Processor: processor, Env: env, Dir: dir, Log: log})
	if err != nil {
		return err
	}
	for _, note := range job.Notes {
		log.Info(note)
	}
	log.Info("started", "scaledjob", job.Name, "queue", job.Queue, "strategy", job.Strategy.Name, "every", job.Interval)
	s.Run(ctx)
	t := s.Totals()
	log.Info("stopped", "jobs", t.Started, "succeeded", t.Succeeded, "failed", t.Failed)
	return nil
}
