package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/complex-app/metrics"
)

func scrape(t *testing.T, r *metrics.Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", w.Header().Get("Content-Type"))
	return w.Body.String()
}

// What Prometheus itself reads of it, test/observability shows.
func TestTheTextFormat(t *testing.T) {
	t.Parallel()
	r := &metrics.Registry{}
	r.Counter("lost_total", "Nothing yet.")
	c := r.Counter("requests_total", "Requests.", "route", "error")
	c.Add(2, `a"b\c`+"\n", "")
	c.Add(1, "/send", "503")
	c.Add(1, "/send", "503")
	g := r.Gauge("in_flight", "In flight.", "queue")
	g.Add(3, "q")
	g.Add(-1, "q")
	h := r.Histogram("took_seconds", "Time.", []float64{0.5, 1}, "op")
	h.Expect("y")
	for _, v := range []float64{0.25, 0.5, 0.75, 7} {
		h.Observe(v, "x")
	}
	r.Func("gauge", "up", "Readiness.", func(emit metrics.Emit) { emit(1, "a"); emit(0, "b") }, "dependency")
	require.Equal(t, `# HELP lost_total Nothing yet.
# TYPE lost_total counter
lost_total 0
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{route="/send",error="503"} 2
requests_total{route="a\"b\\c\n"} 2
# HELP in_flight In flight.
# TYPE in_flight gauge
in_flight{queue="q"} 2
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{op="x",le="0.5"} 2
took_seconds_bucket{op="x",le="1"} 3
took_seconds_bucket{op="x",le="+Inf"} 4
took_seconds_sum{op="x"} 8.5
took_seconds_count{op="x"} 4
took_seconds_bucket{op="y",le="0.5"} 0
took_seconds_bucket{op="y",le="1"} 0
took_seconds_bucket{op="y",le="+Inf"} 0
took_seconds_sum{op="y"} 0
took_seconds_count{op="y"} 0
# HELP up Readiness.
# TYPE up gauge
up{dependency="a"} 1
up{dependency="b"} 0
`, scrape(t, r))
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	r := &metrics.Registry{}
	c, h := r.Counter("c", "."), r.Histogram("h", ".", []float64{1})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				c.Add(1)
				h.Observe(2)
			}
			_ = scrape(t, r)
		})
	}
	all.Wait()
	require.Contains(t, scrape(t, r), "\nc 8000\n")
	require.Contains(t, scrape(t, r), "\nh_count 8000\n")
}
