// worker is a processor-job as people write it, for measurements of what comes of
// it. It may be slow to claim, acknowledge before the work, and ignore SIGTERM.
// What it does not do wrong, processor-job itself does, beside it in the image.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

type settings struct {
	ClaimDelay       time.Duration `split_words:"true"`
	AcknowledgeEarly bool          `split_words:"true"`
	IgnoreSigterm    bool          `split_words:"true"`

	RabbitMQ       queue.Config
	MongoDB        records.Config
	Messages       int           `default:"1"`
	ProcessingTime time.Duration `split_words:"true"`
	ProbeAddr      string        `split_words:"true"`
	PodName        string        `split_words:"true"`
}

func (s *settings) Validate() error { return errors.Join(s.RabbitMQ.Validate(), s.MongoDB.Validate()) }

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var s settings
	if err := config.Load(&s); err != nil {
		return err
	}
	if s.IgnoreSigterm {
		signal.Ignore(syscall.SIGTERM)
	} else {
		var stop func()
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM)
		defer stop()
	}
	select {
	case <-time.After(s.ClaimDelay):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	switch {
	case s.AcknowledgeEarly:
		return s.early(ctx)
	case s.IgnoreSigterm:
		// the kubelet signals the first process only, as with a shell before it
		cmd := exec.Command("/processor-job")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd.Run()
	}
	return syscall.Exec("/processor-job", os.Args, os.Environ())
}

// early claims a message and acknowledges it at once.
func (s settings) early(ctx context.Context) error {
	store, err := records.Open(s.MongoDB, "worker")
	if err != nil {
		return err
	}
	consumer, err := queue.Connect(ctx, s.RabbitMQ, s.PodName)
	if err != nil {
		return err
	}
	defer consumer.Close() //nolint:errcheck // all is acknowledged
	for taken := 0; s.Messages == 0 || taken < s.Messages; taken++ {
		began := time.Now()
		d, err := consumer.Claim(ctx, 5*time.Second)
		switch {
		case errors.Is(err, queue.ErrEmpty) && s.Messages == 0:
			continue
		case errors.Is(err, queue.ErrEmpty):
			return nil
		case err != nil:
			return err
		}
		if taken == 0 {
			go http.ListenAndServe(s.ProbeAddr, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) //nolint:errcheck // then it is not ready
		}
		m, err := d.Message()
		if err != nil {
			return err
		}
		if err := d.Ack(); err != nil {
			return err
		}
		if err := store.Begin(ctx, m, records.Run{Job: s.PodName, Attempt: d.Attempt(), StartedAt: began, ClaimedAt: time.Now()}); err != nil {
			return err
		}
		select {
		case <-time.After(s.ProcessingTime):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := store.Finish(ctx, m.ID); err != nil {
			return err
		}
	}
	return nil
}
