package main

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/telemetry"
)

// settings are the variables of processor-job. Those of work.go are its own.
type settings struct {
	RabbitMQ queue.Config
	MongoDB  records.Config

	workSettings

	// WorkTimeout is how long work may take for one message. Keep it shorter than the
	// Job's activeDeadlineSeconds, which counts from before the pod starts, and than
	// RabbitMQ's consumer_timeout (30 minutes by default).
	WorkTimeout time.Duration `split_words:"true" default:"5m"`
	// Messages is how many messages to take, one after the other, before the exit. 0
	// means until told to stop.
	Messages int `default:"1"`
	// StopGrace is how long the message at hand may still take after SIGTERM. Then it
	// is given back. Keep it below the pod's grace period.
	StopGrace time.Duration `split_words:"true" default:"0s"`
	// ClaimTimeout is how long to wait for a message in an empty queue.
	ClaimTimeout time.Duration `split_words:"true" default:"5s"`
	// RetryTimeout is how long to keep trying RabbitMQ or MongoDB at each step. In an
	// outage each Job fails after this time and KEDA starts another: the longer, the
	// fewer Jobs.
	RetryTimeout time.Duration `split_words:"true" default:"2m"`
	// ProbeAddr serves /readyz, which succeeds once a message is claimed.
	ProbeAddr string              `split_words:"true" default:":8081"`
	PodName   string              `split_words:"true"` // the host's name by default
	LogLevel  slog.Level          `split_words:"true" default:"info"`
	LogFormat telemetry.LogFormat `split_words:"true" default:"auto"`
}

func (s *settings) stays() bool { return s.Messages == 0 }

// Validate names every problem and fills in the pod's name.
func (s *settings) Validate() error {
	problems := []error{s.RabbitMQ.Validate(), s.MongoDB.Validate(), s.workSettings.Validate()}
	if s.WorkTimeout <= 0 {
		problems = append(problems, errors.New("WORK_TIMEOUT: is not positive"))
	}
	if s.RetryTimeout <= 0 {
		problems = append(problems, errors.New("RETRY_TIMEOUT: is not positive"))
	}
	if s.ClaimTimeout < 0 {
		problems = append(problems, errors.New("CLAIM_TIMEOUT: is negative"))
	}
	if s.StopGrace < 0 {
		problems = append(problems, errors.New("STOP_GRACE: is negative"))
	}
	if s.Messages < 0 {
		problems = append(problems, errors.New("MESSAGES: is negative"))
	}
	if s.PodName == "" {
		host, err := os.Hostname()
		s.PodName, problems = host, append(problems, err)
	}
	return errors.Join(problems...)
}
