//go:build observability

package observability_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
	"keda-p2/services/telemetry/telemetrytest"
)

const (
	patience = 3 * time.Minute // RabbitMQ alone takes a minute to start on a busy machine
	tick     = 200 * time.Millisecond
	grace    = 20 * time.Second
)

func start(t *testing.T, env []string, program string, args ...string) (logged func() string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	p, err := process.Start(cmd, log)
	require.NoError(t, err)
	logged = func() string { content, _ := os.ReadFile(log); return string(content) }
	t.Cleanup(func() {
		p.Stop(grace)
		if t.Failed() {
			t.Logf("%s:\n%s", program, p.Tail(40))
		}
	})
	return logged
}

func eventually(t *testing.T, f func() bool, message string, args ...any) {
	t.Helper()
	require.Eventually(t, f, patience, tick, append([]any{message}, args...)...)
}

func port(t *testing.T) string {
	t.Helper()
	n, release, err := freeport.Reserve()
	require.NoError(t, err)
	t.Cleanup(release)
	return fmt.Sprintf("127.0.0.1:%d", n)
}

func find(t *testing.T, text, pattern string) []string {
	t.Helper()
	match := regexp.MustCompile(pattern).FindStringSubmatch(text)
	require.NotNil(t, match, "%s in %s", pattern, text)
	return match[1:]
}

func get(t *testing.T, address string) string {
	t.Helper()
	response, err := http.Get(address)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(content)
}

func TestTheSandboxInPrometheusAndATracesReceiver(t *testing.T) {
	t.Parallel()
	collector := telemetrytest.Start(t)
	env := []string{"PROCESSING_TIME=2s", "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL}
	sandbox := start(t, env, "../../bin/sandbox", "up", "-bin", "../../bin", "-deploy", "../../deploy", "-addr", port(t))
	eventually(t, func() bool { return strings.Contains(sandbox(), "Ctrl-C stops") }, "the sandbox is up")
	api := find(t, sandbox(), `complex-app +(http://[\d.:]+)`)[0]
	targets := find(t, sandbox(), `Metrics: (http://\S+) and (http://\S+)`)
	broker := find(t, sandbox(), `RabbitMQ +([\d.]+):(\d+)`)
	database := find(t, sandbox(), `MongoDB +([\d.]+):(\d+)`)

	// a second replica beside the sandbox's: it has sent nothing, and knows the Jobs
	replica := port(t)
	start(t, append(env, "HTTP_ADDR="+port(t), "ADMIN_ADDR="+replica, "RABBITMQ_USER=user", "RABBITMQ_PASSWORD=P@ssw0rd",
		"RABBITMQ_HOST="+broker[0], "RABBITMQ_PORT="+broker[1], "MONGODB_HOST="+database[0], "MONGODB_PORT="+database[1]), "../../bin/complex-app")
	cluster := httptest.NewServer(http.FileServer(http.Dir("testdata")))
	t.Cleanup(cluster.Close)
	prometheus := startPrometheus(t, append(targets, "http://"+replica+"/metrics", cluster.URL+"/cluster.prom"))

	send := func(query string, want int) {
		response, err := http.Post(api+"/send?"+query, "", nil)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, want, response.StatusCode)
	}
	prometheus.eventually(t, `count(up == 1) == 4`)
	prometheus.eventually(t, `count(http_server_active_requests) > 0 and count(rabbitmq_queue_messages_ready) == 2`)
	for i := range 3 {
		send(fmt.Sprintf("name=record%d&content=c", i), http.StatusAccepted)
	}
	send("content=without+a+name", http.StatusBadRequest)
	publishNonsense(t, broker)

	t.Run("traces", func(t *testing.T) { requireTraces(t, collector) })
	t.Run("replicas", func(t *testing.T) {
		prometheus.eventually(t, `count(keda_p2_record_total_seconds_count == 3) == 2`)
		prometheus.eventually(t, `sum(http_server_request_duration_seconds_count{http_route="/send", http_response_status_code="202"}) == 3`)
	})
	t.Run("exemplars", func(t *testing.T) { requireExemplars(t, prometheus, collector) })
	t.Run("dashboard", func(t *testing.T) {
		for _, p := range dashboard(t) {
			for _, target := range p.Targets {
				prometheus.eventually(t, strings.NewReplacer("$__rate_interval", "2m", "$namespace", "default").Replace(target.Expr))
			}
		}
	})
	t.Run("alerts", func(t *testing.T) { requireAlerts(t, prometheus) })
	t.Run("format", func(t *testing.T) { promtool(t, "", get(t, targets[0]), "check", "metrics") })
}

// publishNonsense puts a message into the queue that can never be processed.
func publishNonsense(t *testing.T, broker []string) {
	t.Helper()
	conn, err := amqp.Dial("amqp://user:P%40ssw0rd@" + broker[0] + ":" + broker[1] + "/")
	require.NoError(t, err)
	defer conn.Close()
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.Publish("", "task_queue", true, false, amqp.Publishing{MessageId: "odd", Body: []byte("not JSON")}))
}

// requireTraces waits for one whole trace of each event: from the request to the
// acknowledgement, from two programs.
func requireTraces(t *testing.T, collector *telemetrytest.Receiver) {
	byTrace := map[string][]telemetrytest.Span{}
	eventually(t, func() bool {
		clear(byTrace)
		for _, s := range collector.Spans() {
			id := telemetrytest.Hex(s.TraceId)
			byTrace[id] = append(byTrace[id], s)
		}
		whole := 0
		for _, spans := range byTrace {
			if slices.ContainsFunc(spans, func(s telemetrytest.Span) bool { return s.Name == "ack task_queue" }) && len(spans) == 8 {
				whole++
			}
		}
		return whole == 3
	}, "three whole traces")
	for _, spans := range byTrace {
		if len(spans) != 8 {
			continue // of the request without a name, or of the nonsense
		}
		named := func(name string) telemetrytest.Span { return telemetrytest.Named(t, spans, name) }
		under := func(parent string, children ...string) {
			for _, child := range children {
				require.Equal(t, named(parent).SpanId, named(child).ParentSpanId, "%s under %s", child, parent)
			}
		}
		require.Empty(t, named("POST /send").ParentSpanId)
		under("POST /send", "send task_queue")
		under("send task_queue", "process task_queue")
		under("process task_queue", "receive task_queue", "store record", "work", "finish record", "ack task_queue")
		require.Equal(t, "complex-app", named("send task_queue").Resource["service.name"])
		require.Equal(t, "processor-job", named("process task_queue").Resource["service.name"])
		require.GreaterOrEqual(t, named("work").End().Sub(named("work").Start()), 2*time.Second)
		require.False(t, named("store record").Start().Before(named("receive task_queue").End()))
	}
}

// requireExemplars waits until Prometheus has the trace's id of a request that was
// accepted.
func requireExemplars(t *testing.T, p prometheus, collector *telemetrytest.Receiver) {
	query := url.Values{"query": {`http_server_request_duration_seconds_bucket{http_response_status_code="202"}`},
		"start": {fmt.Sprint(time.Now().Add(-time.Hour).Unix())}, "end": {fmt.Sprint(time.Now().Add(time.Hour).Unix())}}
	eventually(t, func() bool {
		var answer struct {
			Data []struct {
				Exemplars []struct{ Labels map[string]string }
			}
		}
		p.get(t, "/api/v1/query_exemplars", query, &answer)
		return len(answer.Data) > 0 && slices.ContainsFunc(collector.Spans(), func(s telemetrytest.Span) bool {
			return s.Name == "POST /send" && telemetrytest.Hex(s.TraceId) == answer.Data[0].Exemplars[0].Labels["trace_id"]
		})
	}, "an exemplar that names a trace")
}

// requireAlerts checks that Prometheus evaluates every rule, that all the numbers
// in them are there, and that the dead letter is noticed.
func requireAlerts(t *testing.T, p prometheus) {
	var answer struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Query, Health, LastError string }
			}
		}
	}
	p.get(t, "/api/v1/rules", nil, &answer)
	require.Len(t, answer.Data.Groups, 1)
	require.Len(t, answer.Data.Groups[0].Rules, 5)
	for _, rule := range answer.Data.Groups[0].Rules {
		require.Equal(t, "ok", rule.Health, "%s: %s", rule.Name, rule.LastError)
		for _, metric := range regexp.MustCompile(`\b(keda|kube|rabbitmq)_\w+(\{[^}]*\})?`).FindAllString(rule.Query, -1) {
			p.eventually(t, metric)
		}
	}
	p.eventually(t, `ALERTS{alertname="DeadLetters", alertstate="firing"}`)
	p.eventually(t, `absent(ALERTS{alertname!="DeadLetters", alertstate="firing"})`)
}

// prometheus is the address of a running one.
type prometheus string

func startPrometheus(t *testing.T, targets []string) prometheus {
	t.Helper()
	dir := t.TempDir()
	rules(t, dir)
	var config strings.Builder
	config.WriteString("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\nscrape_configs:\n")
	for i, target := range targets {
		u, err := url.Parse(target)
		require.NoError(t, err)
		fmt.Fprintf(&config, "  - {job_name: target-%d, metrics_path: %s, honor_labels: true, static_configs: [{targets: [%q], labels: {namespace: default}}]}\n", i, u.Path, u.Host)
	}
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, []byte(config.String()), 0o600))
	promtool(t, dir, "", "check", "config", file)
	addr := port(t)
	start(t, nil, "prometheus", "--enable-feature=exemplar-storage", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)
	p := prometheus("http://" + addr)
	eventually(t, func() bool {
		response, err := http.Get(string(p) + "/-/ready")
		return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusOK
	}, "Prometheus is up")
	return p
}

func (p prometheus) get(t *testing.T, path string, query url.Values, answer any) {
	t.Helper()
	content := get(t, string(p)+path+"?"+query.Encode())
	require.NoError(t, json.Unmarshal([]byte(content), answer), content)
}

// eventually waits until a query returns data: numbers, at least one of them.
func (p prometheus) eventually(t *testing.T, query string) {
	t.Helper()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	eventually(t, func() bool {
		answer.Data.Result = nil
		p.get(t, "/api/v1/query", url.Values{"query": {query}}, &answer)
		require.Equal(t, "success", answer.Status, "%s: %s", query, answer.Error)
		return slices.ContainsFunc(answer.Data.Result, func(r struct {
			Metric map[string]string
			Value  [2]any
		}) bool {
			return r.Value[1] != "NaN"
		})
	}, "%s returns data", query)
	t.Logf("%s\n    %v %v", query, answer.Data.Result[0].Metric, answer.Data.Result[0].Value[1])
}
