package config_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

type settings struct {
	RabbitMQ queue.Config
	MongoDB  records.Config
	Wait     time.Duration `default:"20s"`
}

func (s *settings) Validate() error {
	return errors.Join(s.RabbitMQ.Validate(), s.MongoDB.Validate())
}

// These tests are not parallel: they change the environment.

func TestLoadDefaults(t *testing.T) {
	// without the variables that make test sets
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "RABBITMQ_") || strings.HasPrefix(name, "MONGODB_") {
			t.Setenv(name, value) // puts it back after the test
			require.NoError(t, os.Unsetenv(name))
		}
	}
	t.Setenv("USER", "root") // must not become RABBITMQ_USER
	t.Setenv("RABBITMQ_USER", "user")
	t.Setenv("RABBITMQ_PASSWORD", "a/b?c#d%")
	var s settings
	require.NoError(t, config.Load(&s))
	require.Equal(t, queue.Config{
		Server: config.Server{Host: "localhost", User: "user", Password: "a/b?c#d%"},
		Port:   "5672", VHost: "/", Queue: "task_queue", MaxAttempts: 5, RetryMin: 5 * time.Second, RetryMax: 5 * time.Minute,
	}, s.RabbitMQ)
	require.Equal(t, records.Config{
		Server: config.Server{Host: "localhost"},
		Port:   "27017", DB: "sample-db", Collection: "sample-collection", AuthSource: "admin",
	}, s.MongoDB)
	require.Equal(t, 20*time.Second, s.Wait)
}

func TestLoadNamesEveryProblemAndNoSecret(t *testing.T) {
	for name, value := range map[string]string{
		"WAIT":              "20",
		"RABBITMQ_HOST":     "amqp://user:s3cret@rabbitmq",
		"RABBITMQ_PORT":     "amqp://user:s3cret@rabbitmq:5672",
		"RABBITMQ_USER":     "",
		"RABBITMQ_PASSWORD": "s3cret",
		"RABBITMQ_TLS":      "maybe",
		"RABBITMQ_VHOST":    "",
		"RABBITMQ_QUEUE":    "",
		"MONGODB_HOST":      "mongodb://root:s3cret@mongodb",
		"MONGODB_URI":       "mongodb://root:s3/cret@mongodb",
	} {
		t.Setenv(name, value)
	}
	err := config.Load(&settings{})
	for _, problem := range []string{
		`WAIT: "20" is not a duration; give a number and a unit, such as 20s`,
		"RABBITMQ_HOST: give one host name",
		"RABBITMQ_PORT: is not a port from 1 to 65535",
		"RABBITMQ_USER: is empty",
		`RABBITMQ_TLS: "maybe" is not true or false`,
		"RABBITMQ_VHOST: is empty",
		"RABBITMQ_QUEUE: give a name",
		"MONGODB_HOST: give one host name",
		"MONGODB_URI: is not like mongodb://user:password@host",
	} {
		require.ErrorContains(t, err, problem)
	}
	require.NotContains(t, err.Error(), "cret")
	require.NotContains(t, err.Error(), "\n")
}

func TestServerValidate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		server  config.Server
		problem string
	}{
		{name: "a name", server: config.Server{Host: "rabbitmq.default.svc"}},
		{name: "IPv4", server: config.Server{Host: "127.0.0.1"}},
		{name: "IPv6", server: config.Server{Host: "::1"}},
		{name: "a port in the host", server: config.Server{Host: "rabbitmq:5672"}, problem: "X_HOST: give one host"},
		{name: "two hosts", server: config.Server{Host: "a,b"}, problem: "X_HOST: give one host"},
		{name: "a password without a user", server: config.Server{Host: "a", Password: "p"}, problem: "X_USER"},
		{name: "a CA without TLS", server: config.Server{Host: "a", CAFile: "ca.pem"}, problem: "X_CA_FILE: needs X_TLS=true"},
		{name: "no such CA", server: config.Server{Host: "a", TLS: true, CAFile: "none.pem"}, problem: "X_CA_FILE: open none.pem"},
		{name: "not a CA", server: config.Server{Host: "a", TLS: true, CAFile: "config.go"}, problem: "no certificate in config.go"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := c.server.Validate("X")
			if c.problem == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.problem)
			}
		})
	}
}

func TestPort(t *testing.T) {
	for value, want := range map[string]string{
		"5672": "5672", "1": "1", "65535": "65535",
		"tcp://10.96.0.7:5672": "5672", "tcp://[fd00::7]:5671": "5671", // Kubernetes sets these
	} {
		t.Setenv("RABBITMQ_PORT", value)
		var s settings
		_ = config.Load(&s)
		require.Equal(t, config.Port(want), s.RabbitMQ.Port, value)
	}
	for _, value := range []string{"", "0", "65536", "-1", "tcp://10.96.0.7", "tcp://10.96.0.7:x", "http://10.96.0.7:5672", "rabbitmq:5672", " "} {
		t.Setenv("RABBITMQ_PORT", value)
		require.ErrorContains(t, config.Load(&settings{}), "RABBITMQ_PORT: is not a port from 1 to 65535", value)
	}
}

// Whatever stands in the variables, the error is one line that a log can show, and
// no password is in it.
func FuzzLoad(f *testing.F) {
	f.Add("rabbitmq", "5672", "user", "/", "task_queue", "true", "ca.pem", "20s")
	f.Add("amqp://user:", "tcp://10.96.0.7:5672", "", "", "", "maybe", "a\nb", "20")
	f.Add("::1", "0", "\x1b[31m", "\r", "\xff", "", "", "-1h")
	f.Fuzz(func(t *testing.T, host, port, user, vhost, queue, tls, caFile, wait string) {
		const secret = "s3cret"
		for name, value := range map[string]string{
			"RABBITMQ_HOST": host, "RABBITMQ_PORT": port, "RABBITMQ_USER": user, "RABBITMQ_PASSWORD": secret,
			"RABBITMQ_VHOST": vhost, "RABBITMQ_QUEUE": queue, "RABBITMQ_TLS": tls, "RABBITMQ_CA_FILE": "none/" + caFile,
			"MONGODB_HOST": host + secret, "MONGODB_PORT": port, "MONGODB_USER": user, "MONGODB_PASSWORD": secret,
			"MONGODB_URI": "mongodb://" + user + ":" + vhost + secret + queue + "@" + host + "/?" + tls,
			"WAIT":        wait,
		} {
			if strings.ContainsRune(value, 0) {
				return // the environment cannot hold it
			}
			t.Setenv(name, value)
		}
		if err := config.Load(&settings{}); err != nil {
			require.False(t, strings.ContainsFunc(err.Error(), unicode.IsControl), "%q", err)
			require.True(t, utf8.ValidString(err.Error()))
			require.NotContains(t, err.Error(), secret)
		}
	})
}
