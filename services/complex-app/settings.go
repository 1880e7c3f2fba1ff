package main

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
	"keda-p2/services/telemetry"
)

// settings are the variables of complex-app.
type settings struct {
	RabbitMQ queue.Config
	MongoDB  records.Config

	HTTPAddr string `split_words:"true" default:":8080"`
	// ConfirmTimeout is how long POST /send waits for RabbitMQ's confirm, and after which a
	// connection that confirms nothing is given up. With the default a cluster of RabbitMQ
	// that loses a node answers again within 5 s, also if all connections led to that node.
	ConfirmTimeout time.Duration `split_words:"true" default:"2s"`
	// ShutdownTimeout is how long requests in flight may take after SIGTERM.
	ShutdownTimeout time.Duration `split_words:"true" default:"20s"`
	LogLevel        slog.Level    `split_words:"true" default:"info"`
	// TrustedOrigins are those of the page behind a proxy that changes the Host header.
	TrustedOrigins []string `split_words:"true"`
	// AllowedHosts are the names under which the service answers; none means all.
	AllowedHosts []string `split_words:"true"`

	// AdminAddr serves /metrics, beside /healthz and /readyz. Empty means nowhere.
	// The port is that of OpenTelemetry's exporters for Prometheus.
	AdminAddr string              `split_words:"true" default:":9464"`
	LogFormat telemetry.LogFormat `split_words:"true" default:"auto"`
}

// Validate names every problem.
func (s *settings) Validate() error {
	problems := []error{
		s.RabbitMQ.Validate(), s.MongoDB.Validate(),
		config.Check(s.ConfirmTimeout > 0, "CONFIRM_TIMEOUT: is not positive"),
		config.Check(s.ShutdownTimeout > 0, "SHUTDOWN_TIMEOUT: is not positive"),
	}
	for _, origin := range s.TrustedOrigins {
		err := http.NewCrossOriginProtection().AddTrustedOrigin(origin)
		problems = append(problems, config.Check(err == nil, "TRUSTED_ORIGINS: %q is not an origin; write https://demo.example, and a comma between two", origin))
	}
	for _, host := range s.AllowedHosts {
		isName := host != "" && !strings.ContainsAny(host, ":/ ")
		problems = append(problems, config.Check(isName, "ALLOWED_HOSTS: %q is not a name; write demo.example without a port, and a comma between two", host))
	}
	return errors.Join(problems...)
}
