// Package metrics keeps counters, gauges and histograms and shows them in
// Prometheus's text format. It is small because Prometheus's own client is not: that
// would make complex-app of 11 MB one of 16, most of it protobuf, which no one asks
// for here.
package metrics

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Registry shows metrics in the order in which they were made. Make them before
// it is served.
type Registry struct{ families []*family }

type family struct {
	name, help, kind string
	labels           []string
	buckets          []float64 // of a histogram, ascending

	mu      sync.Mutex
	series  map[string]*series // by the values of its labels
	collect func(Emit)         // in place of the series
	group   func(func(*Registry))
}

type series struct {
	labels string // as they are shown
	value  float64
	counts []uint64 // in each bucket, and above the last
	sum    float64
}

// Emit shows one series of a Func.
type Emit func(value float64, labelValues ...string)

// Counter is a number that only grows, for each combination of labels.
type Counter struct{ *family }

// Gauge is a number that goes up and down.
type Gauge struct{ *family }

// Histogram counts values by their size.
type Histogram struct{ *family }

func (r *Registry) add(kind, name, help string, labels []string) *family {
	f := &family{name: name, help: help, kind: kind, labels: labels, series: map[string]*series{}}
	r.families = append(r.families, f)
	return f
}

// Counter makes a counter. One without labels begins with 0.
func (r *Registry) Counter(name, help string, labels ...string) Counter {
	c := Counter{r.add("counter", name, help, labels)}
	if len(labels) == 0 {
		c.Add(0)
	}
	return c
}

// Gauge makes a gauge.
func (r *Registry) Gauge(name, help string, labels ...string) Gauge {
	return Gauge{r.add("gauge", name, help, labels)}
}

// Histogram makes a histogram with the given upper bounds, which ascend. One
// without labels begins with 0.
func (r *Registry) Histogram(name, help string, buckets []float64, labels ...string) Histogram {
	h := Histogram{r.add("histogram", name, help, labels)}
	h.buckets = buckets
	if len(labels) == 0 {
		h.Expect()
	}
	return h
}

// Func makes a gauge or counter whose values are asked for at each scrape.
func (r *Registry) Func(kind, name, help string, collect func(Emit), labels ...string) {
	r.add(kind, name, help, labels).collect = collect
}

// Group adds other registries' metrics, which f shows at each scrape, or does not.
func (r *Registry) Group(f func(show func(*Registry))) {
	r.families = append(r.families, &family{group: f})
}

// Add adds to the counter with these labels.
func (c Counter) Add(n float64, labelValues ...string) { c.change(n, labelValues) }

// Add adds to the gauge with these labels.
func (g Gauge) Add(n float64, labelValues ...string) { g.change(n, labelValues) }

func (f *family) change(n float64, labelValues []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.get(labelValues).value += n
}

// Expect shows the histogram with these labels from now on. A series that appears
// with its first values has no rate: of a first burst, nothing would be seen.
func (h Histogram) Expect(labelValues ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.get(labelValues)
}

// Observe counts a value.
func (h Histogram) Observe(v float64, labelValues ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.get(labelValues)
	bucket, _ := slices.BinarySearch(h.buckets, v)
	s.counts[bucket]++
	s.sum += v
}

func (f *family) get(labelValues []string) *series {
	var buffer [128]byte // looking up what is there allocates nothing
	key := buffer[:0]
	for _, value := range labelValues {
		key = append(append(key, value...), 0xff) // which no UTF-8 has
	}
	s := f.series[string(key)]
	if s == nil {
		s = &series{labels: f.show(labelValues)}
		if f.kind == "histogram" {
			s.counts = make([]uint64, len(f.buckets)+1)
		}
		f.series[string(key)] = s
	}
	return s
}

// show writes labels as name="value",…. One without a value is as good as none,
// and is left out.
func (f *family) show(values []string) string {
	if len(values) != len(f.labels) {
		panic(fmt.Sprintf("%s has the labels %q, not %q", f.name, f.labels, slices.Clone(values)))
	}
	var b strings.Builder
	for i, value := range values {
		if value == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(f.labels[i] + `="` + escape(value) + `"`)
	}
	return b.String()
}

// ServeHTTP answers a scrape.
func (r *Registry) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	r.write(&b)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // fails only when the client is gone
}

func (r *Registry) write(b *bytes.Buffer) {
	for _, f := range r.families {
		if f.group != nil {
			f.group(func(other *Registry) { other.write(b) })
		} else {
			f.write(b)
		}
	}
}

func (f *family) write(b *bytes.Buffer) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
	line := func(suffix, labels, bound string, value string) {
		b.WriteString(f.name + suffix)
		if bound != "" {
			bound = `le="` + bound + `"`
			if labels != "" {
				bound = "," + bound
			}
		}
		if labels+bound != "" {
			b.WriteString("{" + labels + bound + "}")
		}
		b.WriteString(" " + value + "\n")
	}
	if f.collect != nil { // not under the lock: it may take a while
		f.collect(func(value float64, labelValues ...string) { line("", f.show(labelValues), "", number(value)) })
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range slices.SortedFunc(maps.Values(f.series), func(a, b *series) int { return strings.Compare(a.labels, b.labels) }) {
		key := s.labels
		if f.kind != "histogram" {
			line("", key, "", number(s.value))
			continue
		}
		var total uint64
		for i, n := range s.counts {
			total += n
			bound := "+Inf"
			if i < len(f.buckets) {
				bound = number(f.buckets[i])
			}
			line("_bucket", key, bound, strconv.FormatUint(total, 10))
		}
		line("_sum", key, "", number(s.sum))
		line("_count", key, "", strconv.FormatUint(total, 10))
	}
}

// escape is Prometheus's: it knows these three and no other of Go's.
func escape(value string) string {
	if !strings.ContainsAny(value, "\\\"\n") {
		return value
	}
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value)
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
