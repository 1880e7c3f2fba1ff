// Package config reads a service's variables and says all that is wrong with
// them at once.
package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/kelseyhightower/envconfig"
)

// Load fills cfg, a pointer to a struct with envconfig tags, from the environment
// and validates it. Its one error names every problem. Values are quoted only where
// they could not be parsed, so a secret must be a string.
func Load(cfg interface{ Validate() error }) error {
	problems := read("", reflect.ValueOf(cfg).Elem())
	problems = append(problems, cfg.Validate())
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("configuration: %s", oneLine(err.Error()))
	}
	return nil
}

// read fills one field after the other: envconfig stops at the first bad value of a
// struct. A field whose value is bad gets its default.
func read(prefix string, settings reflect.Value) (problems []error) {
	for i := range settings.NumField() {
		field := settings.Type().Field(i)
		if field.Anonymous {
			problems = append(problems, read(prefix, settings.Field(i))...)
			continue
		}
		if field.Type.Kind() == reflect.Struct {
			problems = append(problems, read(strings.ToUpper(field.Name), settings.Field(i))...)
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
		err := envconfig.Process(prefix, one.Interface())
		if bad, ok := errors.AsType[*envconfig.ParseError](err); ok {
			problem := bad.Err // of a type with a Decode of its own, whose error may be shown
			if kind, ok := kinds[bad.TypeName]; ok {
				problem = fmt.Errorf("%q is not %s", bad.Value, kind)
			}
			err = fmt.Errorf("%s: %w", bad.KeyName, problem)
			_ = envconfig.Process("NO_SUCH_VARIABLE", one.Interface()) // sets the default
		}
		problems = append(problems, err)
		settings.Field(i).Set(one.Elem().Field(0))
	}
	return problems
}

// oneLine replaces control characters, which a file name in an error may contain.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
}

// kinds says what the values of a type are.
var kinds = map[string]string{
	"time.Duration": "a duration; give a number and a unit, such as 20s or 5m",
	"bool":          "true or false",
	"int":           "a whole number",
	"float64":       "a number",
	"slog.Level":    "one of debug, info, warn and error",
}

// Check returns an error with the problem unless ok.
func Check(ok bool, problem string, values ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(problem, values...)
}

// Port is a server's port. Kubernetes sets RABBITMQ_PORT=tcp://10.0.0.1:5672 in
// pods beside a Service named rabbitmq: the port is taken out of such a value.
type Port string

// Decode is envconfig's. Its error does not quote the value, which may be a URL with
// a password.
func (p *Port) Decode(value string) error {
	if address, err := url.Parse(value); err == nil && address.Scheme == "tcp" {
		value = address.Port()
	}
	if n, err := strconv.ParseUint(value, 10, 16); err != nil || n == 0 {
		return errors.New("is not a port from 1 to 65535")
	}
	*p = Port(value)
	return nil
}

// Server says where a server is and how to log in to it. It is embedded in a struct
// that adds Port, as each server has its own default port. It has no envconfig:"…"
// tags: with one, envconfig would also accept the bare name, and take the shell's
// USER for RABBITMQ_USER.
type Server struct {
	Host     string `default:"localhost"`
	User     string
	Password string
	TLS      bool   // encrypt, and verify the server's certificate and name
	CAFile   string `split_words:"true"` // PEM; empty means the system's roots
}

// Validate checks the variables that begin with prefix, such as RABBITMQ.
func (s Server) Validate(prefix string) error {
	_, notAnAddress := netip.ParseAddr(s.Host)
	_, noCA := s.TLSConfig()
	return errors.Join(
		// a host is never quoted: it may be a URL with a password
		Check(s.Host != "", "%s_HOST: is empty", prefix),
		Check(!strings.ContainsAny(s.Host, "/@, ") && (!strings.Contains(s.Host, ":") || notAnAddress == nil),
			"%[1]s_HOST: give one host name or address only; the rest goes into %[1]s_PORT, %[1]s_USER and %[1]s_PASSWORD", prefix),
		Check(s.User != "" || s.Password == "", "%[1]s_USER: is empty, but %[1]s_PASSWORD is set", prefix),
		Check(s.CAFile == "" || s.TLS, "%[1]s_CA_FILE: needs %[1]s_TLS=true", prefix),
		Check(noCA == nil, "%s_CA_FILE: %w", prefix, noCA),
	)
}

// TLSConfig returns nil when TLS is off.
func (s Server) TLSConfig() (*tls.Config, error) {
	if !s.TLS {
		return nil, nil
	}
	// no ServerName: the clients set it to the host that they dial, which in a replica
	// set need not be Host
	c := &tls.Config{MinVersion: tls.VersionTLS12}
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

// ExplainTLS adds what to do to an error of a TLS handshake. The prefix is that of the
// server's variables. It goes by the text, because MongoDB's driver passes on no more.
func ExplainTLS(prefix string, err error) error {
	const name = "set %[2]s_HOST to a name that the server's certificate has, or issue one for this name"
	for _, known := range []struct{ text, remedy string }{
		{"x509: certificate signed by unknown authority", "%[2]s_CA_FILE must hold the authority that signed the server's certificate"},
		{"x509: certificate is ", name},
		{"x509: cannot validate certificate for ", name},
		{"tls: first record does not look like a TLS handshake", "the server does not speak TLS on this port: set the right %[2]s_PORT, or %[2]s_TLS=false"},
	} {
		if strings.Contains(err.Error(), known.text) {
			return fmt.Errorf("%[1]w: "+known.remedy, err, prefix)
		}
	}
	return err
}
