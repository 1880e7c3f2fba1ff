package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"keda-p2/services/contract"
	"keda-p2/services/contract/config"
)

// This file is yours: replace it, and you have a worker of your own. The rest of the
// package calls nothing here but work and the settings. docs/your-own-worker.md has a
// whole example.

// workSettings are the variables that work needs, beside those of the worker. They are
// read and checked once, when the process starts.
type workSettings struct {
	// ProcessingTime is how long the stand-in takes.
	ProcessingTime time.Duration `split_words:"true" default:"20s"`
	// FailureRate is the share of the attempts that fail, from 0 to 1: half of them
	// with an error, a quarter with a permanent one, a quarter by a panic.
	FailureRate float64 `split_words:"true" default:"0"`
}

// Validate names every problem with the variables.
func (s workSettings) Validate() error {
	return errors.Join(
		config.Check(s.ProcessingTime >= 0, "PROCESSING_TIME: is negative"),
		config.Check(s.FailureRate >= 0 && s.FailureRate <= 1, "FAILURE_RATE: is not from 0 to 1"),
	)
}

// work does what is to be done for one message. This stand-in sleeps, as if it
// converted a video.
//
//   - nil: the message is acknowledged, and its record is done.
//   - an error: the message is tried again, up to RABBITMQ_MAX_ATTEMPTS times. Then it
//     is a dead letter with this error as its reason, and its record has failed. A
//     panic is an error too.
//   - permanent(err): trying again would not help, so it is a dead letter at once.
//
// Return when ctx ends: after WORK_TIMEOUT, when the pod is told to stop, or when
// RabbitMQ has lost this worker. What you return then makes no difference.
//
// A message may be worked on more than once, for example after a node has died. m.ID is
// the same each time: store your result under it, so that doing it again changes
// nothing.
func (s workSettings) work(ctx context.Context, m contract.Message) error {
	select {
	case <-time.After(s.ProcessingTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	switch luck := rand.Float64(); {
	case luck < s.FailureRate/2:
		return errors.New("the stand-in was told to fail")
	case luck < s.FailureRate*3/4:
		return permanent(errors.New("the stand-in was told to fail for good"))
	case luck < s.FailureRate:
		panic("the stand-in was told to panic")
	}
	return nil
}
