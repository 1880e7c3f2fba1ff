package main

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"keda-p2/services/contract/config"
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
	var noName error
	if s.PodName == "" {
		s.PodName, noName = os.Hostname()
	}
	return errors.Join(
		s.RabbitMQ.Validate(), s.MongoDB.Validate(), s.workSettings.Validate(),
		config.Check(s.WorkTimeout > 0, "WORK_TIMEOUT: is not positive"),
		config.Check(s.RetryTimeout > 0, "RETRY_TIMEOUT: is not positive"),
		config.Check(s.ClaimTimeout >= 0, "CLAIM_TIMEOUT: is negative"),
		config.Check(s.StopGrace >= 0, "STOP_GRACE: is negative"),
		config.Check(s.Messages >= 0, "MESSAGES: is negative"),
		noName,
	)
}
