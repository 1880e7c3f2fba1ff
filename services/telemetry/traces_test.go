package telemetry_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"keda-p2/services/telemetry"
	"keda-p2/services/telemetry/telemetrytest"
)

// start starts traces with the given variables. log returns the log so far.
func start(t *testing.T, variables map[string]string) (provider trace.TracerProvider, stop func(), log func() string) {
	t.Helper()
	for name, value := range variables {
		t.Setenv("OTEL_"+name, value)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = out.Close() })
	traces := telemetry.StartTraces(t.Context(), "a service", "1.2", telemetry.NewLogger(out, slog.LevelDebug, "text"))
	provider, stop = traces.TracerProvider, traces.Stop
	return provider, stop, func() string {
		content, err := os.ReadFile(out.Name())
		require.NoError(t, err)
		var lines []string
		for line := range strings.Lines(string(content)) {
			if !strings.Contains(line, "level=DEBUG") {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "")
	}
}

func span(provider trace.TracerProvider, name string) {
	_, s := provider.Tracer("test").Start(context.Background(), name)
	s.End()
}

func TestSpansArrive(t *testing.T) {
	for name, c := range map[string]map[string]string{
		"the default is HTTP":       {},
		"HTTP":                      {"EXPORTER_OTLP_PROTOCOL": "http/protobuf", "EXPORTER_OTLP_COMPRESSION": "gzip"},
		"gRPC":                      {"EXPORTER_OTLP_PROTOCOL": "grpc", "EXPORTER_OTLP_COMPRESSION": "gzip"},
		"traces' own protocol wins": {"EXPORTER_OTLP_PROTOCOL": "http/json", "EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
	} {
		t.Run(name, func(t *testing.T) {
			collector := telemetrytest.Start(t)
			c["EXPORTER_OTLP_ENDPOINT"] = collector.URL
			c["EXPORTER_OTLP_HEADERS"] = "api-key=a%3Db, other=c"
			c["RESOURCE_ATTRIBUTES"] = "deployment.environment.name=test"
			provider, stop, log := start(t, c)
			span(provider, "a span")
			stop()

			require.Empty(t, log())
			require.Equal(t, "a=b", collector.Headers().Get("api-key"))
			require.Equal(t, "c", collector.Headers().Get("other"))
			s := telemetrytest.Named(t, collector.Spans(), "a span")
			require.Equal(t, "a service", s.Resource["service.name"])
			require.Equal(t, "1.2", s.Resource["service.version"])
			require.Equal(t, "test", s.Resource["deployment.environment.name"])
			require.Equal(t, "opentelemetry", s.Resource["telemetry.sdk.name"])
		})
	}
}

func TestSpansArriveAsJSON(t *testing.T) {
	var contentType, path string
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		contentType, path = r.Header.Get("Content-Type"), r.URL.Path
	}))
	defer collector.Close()
	provider, stop, log := start(t, map[string]string{"EXPORTER_OTLP_TRACES_ENDPOINT": collector.URL + "/own", "EXPORTER_OTLP_PROTOCOL": "http/json"})
	span(provider, "a span")
	stop()
	require.Empty(t, log())
	require.Equal(t, "application/json", contentType)
	require.Equal(t, "/own", path)
}

func TestTLSWithAClientCertificate(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			var client, server string
			collector := telemetrytest.StartServer(t, func(s *httptest.Server) {
				s.EnableHTTP2 = true
				s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
				s.StartTLS()
				pair := s.TLS.Certificates[0] // the client's as well
				key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
				require.NoError(t, err)
				server = write(t, "CERTIFICATE", pair.Certificate[0])
				client = write(t, "PRIVATE KEY", key)
			})
			provider, stop, log := start(t, map[string]string{
				"EXPORTER_OTLP_ENDPOINT": collector.URL, "EXPORTER_OTLP_PROTOCOL": protocol, "EXPORTER_OTLP_CERTIFICATE": server,
				"EXPORTER_OTLP_CLIENT_CERTIFICATE": server, "EXPORTER_OTLP_CLIENT_KEY": client,
			})
			span(provider, "a span")
			stop()
			require.Empty(t, log())
			telemetrytest.Named(t, collector.Spans(), "a span")
		})
	}
}

func write(t *testing.T, kind string, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pem")
	require.NoError(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600))
	return name
}

func TestTheLibrarysOtherVariables(t *testing.T) {
	collector := telemetrytest.Start(t)
	provider, stop, log := start(t, map[string]string{
		"EXPORTER_OTLP_ENDPOINT": collector.URL, "TRACES_SAMPLER": "always_off", "SERVICE_NAME": "mine", "RESOURCE_ATTRIBUTES": "no value",
	})
	span(provider, "not sampled")
	t.Setenv("OTEL_TRACES_SAMPLER", "sometimes")
	another := telemetry.StartTraces(t.Context(), "a service", "1.2", slog.New(slog.DiscardHandler))
	span(another, "sampled")
	stop()
	another.Stop()
	spans := collector.Spans()
	require.Len(t, spans, 1)
	require.Equal(t, "mine", telemetrytest.Named(t, spans, "sampled").Resource["service.name"])
	require.Equal(t, 1, strings.Count(log(), "\n"), log())
	require.Contains(t, log(), "missing value")
}

func TestTracesThatAreOff(t *testing.T) {
	const endpoint = "EXPORTER_OTLP_ENDPOINT"
	for name, c := range map[string]struct {
		variables map[string]string
		warning   string
	}{
		"nothing set":      {},
		"disabled":         {map[string]string{endpoint: "http://c:4318", "SDK_DISABLED": "TRUE"}, ""},
		"no exporter":      {map[string]string{endpoint: "http://c:4318", "TRACES_EXPORTER": "none"}, ""},
		"unknown protocol": {map[string]string{endpoint: "http://c:4318", "EXPORTER_OTLP_PROTOCOL": "thrift"}, `OTEL_EXPORTER_OTLP_PROTOCOL is \"thrift\"`},
		"no scheme":        {map[string]string{endpoint: "c:4318"}, "is not a URL"},
		"unknown scheme":   {map[string]string{endpoint: "ftp://c:4318"}, "is not a URL"},
		"not a URL":        {map[string]string{endpoint: "http://c:port", "EXPORTER_OTLP_PROTOCOL": "grpc"}, "is not a URL"},
	} {
		t.Run(name, func(t *testing.T) {
			provider, stop, log := start(t, c.variables)
			_, s := provider.Tracer("test").Start(t.Context(), "a span")
			require.False(t, s.IsRecording())
			require.False(t, s.SpanContext().IsValid())
			stop()
			if c.warning == "" {
				require.Empty(t, log())
			} else {
				require.Equal(t, 1, strings.Count(log(), "\n"), log())
				require.Contains(t, log(), c.warning)
			}
		})
	}
}

func TestGRPCsPortWithoutAProtocolIsNamed(t *testing.T) {
	for protocol, named := range map[string]bool{"": true, "grpc": false, "http/protobuf": false} {
		_, stop, log := start(t, map[string]string{"EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "EXPORTER_OTLP_PROTOCOL": protocol})
		stop()
		require.Equal(t, named, strings.Contains(log(), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"), log())
	}
}

// Without a retry the end does not wait: stop returns before its own deadline, or it
// would log that as well.
func TestACollectorThatIsAwayIsOneLine(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			provider, stop, log := start(t, map[string]string{"EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "EXPORTER_OTLP_PROTOCOL": protocol, "BSP_MAX_EXPORT_BATCH_SIZE": "1"})
			for range 3 {
				span(provider, "a span")
			}
			stop()
			require.Equal(t, 1, strings.Count(log(), "\n"), log())
			require.Contains(t, log(), "connection refused")
		})
	}
}

func TestAnOutageIsLoggedWhenItBeginsAndWhenItEnds(t *testing.T) {
	var requests atomic.Int32
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := requests.Add(1); n == 2 || n == 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer collector.Close()
	provider, stop, log := start(t, map[string]string{"EXPORTER_OTLP_ENDPOINT": collector.URL, "BSP_MAX_EXPORT_BATCH_SIZE": "1"})
	for range 4 {
		span(provider, "a span")
	}
	stop()
	require.EqualValues(t, 4, requests.Load())
	require.Equal(t, 2, strings.Count(log(), "\n"), log())
	require.Contains(t, log(), "traces are not delivered")
	require.Contains(t, log(), "traces are delivered again")
}

// The exporter would wait for an hour, stop does not.
func TestStopDoesNotWaitForASilentCollector(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			silent, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer silent.Close()
			provider, stop, log := start(t, map[string]string{
				"EXPORTER_OTLP_ENDPOINT": "http://" + silent.Addr().String(), "EXPORTER_OTLP_PROTOCOL": protocol,
				"EXPORTER_OTLP_TIMEOUT": "3600000", "BSP_EXPORT_TIMEOUT": "3600000",
			})
			span(provider, "a span")
			stop()
			require.Equal(t, 1, strings.Count(log(), "\n"), log())
			require.Contains(t, log(), "the last traces are lost")
		})
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	echo := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNotFound
		if strings.HasSuffix(r.URL.Path, "/busy") {
			status = http.StatusServiceUnavailable
		}
		http.Error(w, fmt.Sprint(r.URL.Path, "\n", r.Header), status)
	}))
	echo.Config.Protocols = &http.Protocols{}
	echo.Config.Protocols.SetHTTP1(true)
	echo.Config.Protocols.SetUnencryptedHTTP2(true)
	echo.Start()
	defer echo.Close()
	at := strings.TrimPrefix(echo.URL, "http://")
	for name, c := range map[string]struct{ endpoint, general, headers, reason string }{
		"away":                  {endpoint: "http://u:secret@127.0.0.1:1/secret/a?key=secret", reason: "connection refused"},
		"not found":             {endpoint: "http://u:secret@" + at + "/secret/a?key=secret", reason: "404"},
		"busy":                  {endpoint: "http://" + at + "/secret/busy", reason: "request failure|404"},
		"unknown host":          {endpoint: "http://c..invalid:4318/secret", reason: "lookup c..invalid|zero addresses"},
		"not a URL":             {endpoint: "http://u:secret@c:port/secret", reason: "is not a URL"},
		"not a URL either":      {endpoint: "u:secret@c:4318", reason: "is not a URL"},
		"the other endpoint":    {endpoint: "http://127.0.0.1:1", general: "http://u:secret/secret@c:4318", reason: "parse url"},
		"a header without =":    {endpoint: "http://127.0.0.1:1", headers: "secret", reason: "parse headers"},
		"a header's name":       {endpoint: "http://127.0.0.1:1", headers: "a key=secret", reason: "parse headers"},
		"an unescaped header":   {endpoint: "http://127.0.0.1:1", headers: "key=secret%zz", reason: "escape"},
		"a header of two lines": {endpoint: "http://" + at, headers: "key=secret%0Asecret", reason: "header"},
	} {
		for _, protocol := range []string{"http/protobuf", "grpc"} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				provider, stop, log := start(t, map[string]string{
					"EXPORTER_OTLP_TRACES_ENDPOINT": c.endpoint, "EXPORTER_OTLP_ENDPOINT": c.general, "EXPORTER_OTLP_PROTOCOL": protocol,
					"EXPORTER_OTLP_HEADERS": c.headers + ",api-key=secret",
				})
				span(provider, "a span")
				stop()
				require.NotContains(t, log(), "secret")
				require.Regexp(t, c.reason, log())
			})
		}
	}
}
