// Package config reads a service's variables and says all that is wrong with
// them at once.
package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/kelseyhightower/envconfig"
)

// Load fills cfg, a pointer to a struct with envconfig tags, from the
// environment and validates it. Its one error names every problem. Values are
// quoted only where they could not be parsed, so a secret must be a string.
func Load(cfg interface{ Validate() error }) error {
	var problems []error
	// envconfig stops at the first bad value. Without that value the default
	// takes its place, and the next call finds the next problem.
	for {
		err := envconfig.Process("", cfg)
		var bad *envconfig.ParseError
		if !errors.As(err, &bad) {
			if err != nil {
				return fmt.Errorf("configuration: %w", err)
			}
			break
		}
		problems = append(problems, fmt.Errorf("%s: %q is not %s", bad.KeyName, bad.Value, expected(bad.TypeName)))
		if err := os.Unsetenv(bad.KeyName); err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
	}
	problems = append(problems, cfg.Validate())
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("configuration: %s", oneLine(err.Error()))
	}
	return nil
}

// oneLine is for the log: a file's name, for one, stands in its error as it is,
// whatever characters it has.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
}

func expected(typeName string) string {
	switch typeName {
	case "time.Duration":
		return "a duration; give a number and a unit, such as 20s or 5m"
	case "bool":
		return "true or false"
	case "int":
		return "a whole number"
	case "telemetry.LogFormat":
		return "one of auto, json and text"
	case "slog.Level":
		return "one of debug, info, warn and error"
	default:
		return "of type " + typeName
	}
}

// Server is where a server is and how to log in to it. It is embedded in a
// struct that adds Port, as each server has a default port of its own. There
// are no envconfig:"…" tags here: with one, envconfig would fall back to the
// bare name, and take the shell's USER for RABBITMQ_USER.
type Server struct {
	Host     string `default:"localhost"`
	User     string
	Password string
	TLS      bool   // encrypt, and verify the server's certificate for Host
	CAFile   string `split_words:"true"` // PEM; empty means the system's roots
}

// Validate checks the variables that begin with prefix, such as RABBITMQ.
func (s Server) Validate(prefix, port string) error {
	var problems []error
	// a host is never quoted: somebody may have put a URL with a password there
	if s.Host == "" {
		problems = append(problems, fmt.Errorf("%s_HOST: is empty", prefix))
	} else if strings.ContainsAny(s.Host, "/@, ") || strings.Contains(s.Host, ":") && !isIPv6(s.Host) {
		problems = append(problems, fmt.Errorf("%[1]s_HOST: give one host name or address only; the rest goes into %[1]s_PORT, %[1]s_USER and %[1]s_PASSWORD", prefix))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		problem := fmt.Sprintf("%s_PORT: %q is not a port from 1 to 65535", prefix, port)
		if strings.HasPrefix(port, "tcp://") {
			problem += "; Kubernetes sets this for a Service of that name: put enableServiceLinks: false into the pod's spec"
		}
		problems = append(problems, errors.New(problem))
	}
	if s.User == "" && s.Password != "" {
		problems = append(problems, fmt.Errorf("%[1]s_USER: is empty, but %[1]s_PASSWORD is set", prefix))
	}
	if s.CAFile != "" && !s.TLS {
		problems = append(problems, fmt.Errorf("%[1]s_CA_FILE: needs %[1]s_TLS=true", prefix))
	}
	if _, err := s.TLSConfig(); err != nil {
		problems = append(problems, fmt.Errorf("%s_CA_FILE: %w", prefix, err))
	}
	return errors.Join(problems...)
}

func isIPv6(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Is6()
}

// TLSConfig returns nil when TLS is off.
func (s Server) TLSConfig() (*tls.Config, error) {
	if !s.TLS {
		return nil, nil
	}
	c := &tls.Config{ServerName: s.Host, MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s", s.CAFile)
		}
	}
	return c, nil
}
