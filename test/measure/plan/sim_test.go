package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// testSystem claims a second after a Job's creation, however many there are. KEDA
// sees a pod a second late, and a Job finished two seconds after its work.
func testSystem(change func(*system)) system {
	s := system{poll: 5, start: 1, starts: 1e12, lag: 1, end: 2}
	s.strategy.Name, s.strategy.Target, s.strategy.MaxReplicas = "accurate", 1, 10
	if change != nil {
		change(&s)
	}
	return s
}

func testLoad(work float64, at ...float64) load {
	return load{at, slices.Repeat([]float64{work}, len(at))}
}

func times(n int, values ...float64) []float64 {
	var all []float64
	for _, v := range values {
		all = append(all, slices.Repeat([]float64{v}, n)...)
	}
	return all
}

// The expected numbers are worked out by hand.
func TestSimulate(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change     func(*system)
		load       load
		phase      float64
		waits      []float64
		done       float64
		atOnce     int64
		podSeconds float64
	}{
		"five at once": {
			// look at 1, claims at 2, done at 22, finished at 24
			load: testLoad(20, times(5, 0)...), phase: 1,
			waits: times(5, 2), done: 22, atOnce: 5, podSeconds: 5 * 22,
		},
		"sent at the moment of a look": {
			load: testLoad(20, 0, 1), phase: 1,
			waits: []float64{2, 1}, done: 22, atOnce: 2, podSeconds: 2 * 22,
		},
		"sent just after a look": {
			load: testLoad(20, 1.1), phase: 1,
			waits: []float64{5.9}, done: 27, atOnce: 1, podSeconds: 22,
		},
		"a first look that is late": {
			load: testLoad(20, 0), phase: 5.2,
			waits: []float64{6.2}, done: 26.2, atOnce: 1, podSeconds: 22,
		},
		"three bursts, the third waits for the first one's places": {
			// looks that matter at 1, 11 and, as Jobs are finished at 24, 26
			load: testLoad(20, times(5, 0, 8, 16)...), phase: 1,
			waits: times(5, 2, 4, 11), done: 47, atOnce: 10, podSeconds: 15 * 22,
		},
		"thirty in three waves of ten": {
			// looks at 1, 26 and 51
			load: testLoad(20, times(30, 0)...), phase: 1,
			waits: times(10, 2, 27, 52), done: 72, atOnce: 10, podSeconds: 30 * 22,
		},
		"a Job counts until it is finished": {
			// finished at 26.5, so the look at 26 finds no place
			change: func(s *system) { s.end = 4.5 },
			load:   testLoad(20, times(20, 0)...), phase: 1,
			waits: times(10, 2, 32), done: 52, atOnce: 10, podSeconds: 20 * 22,
		},
		"pods start one after the other": {
			change: func(s *system) { s.starts = 2 },
			load:   testLoad(20, times(5, 0)...), phase: 1,
			waits: []float64{2, 2.5, 3, 3.5, 4}, done: 24, atOnce: 5, podSeconds: 5*22 + 5,
		},
		"a worker that needs 12 s before its claim gets no spare Jobs": {
			change: func(s *system) { s.start = 13 },
			load:   testLoad(20, times(5, 0)...), phase: 1,
			waits: times(5, 14), done: 34, atOnce: 5, podSeconds: 5 * 34,
		},
		"a Job that is not ready yet is taken for the next message's": {
			// claims at 4.5 and is ready at 5.5; the second one is sent at 4.9,
			// not seen by the look at 5, but by that at 10
			change: func(s *system) { s.start = 4.5 },
			load:   testLoad(20, 0, 4.9),
			waits:  []float64{4.5, 9.6}, done: 34.5, atOnce: 2, podSeconds: 2 * 25.5,
		},
		"a Job that has ended is taken for the next message's": {
			// its work is done at 4, it has ended at 5, and is finished at 6
			load:  testLoad(3, 0, 4.5),
			waits: []float64{1, 6.5}, done: 14, atOnce: 1, podSeconds: 2 * 5,
		},
		"work that ends before its pod is seen to be ready": {
			load:  testLoad(0.5, 0, 3),
			waits: []float64{1, 3}, done: 6.5, atOnce: 1, podSeconds: 2 * 2.5,
		},
		"a pause of thirty years takes no time": {
			load:  testLoad(20, 0, 1e9),
			waits: []float64{1, 1}, done: 1e9 + 21, atOnce: 1, podSeconds: 2 * 22,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := simulate(testSystem(tt.change), tt.load, tt.phase)
			require.InDeltaSlice(t, tt.waits, r.waits, 1e-6)
			require.InDelta(t, tt.done, r.done, 1e-6)
			require.Equal(t, tt.atOnce, r.atOnce)
			require.Equal(t, len(tt.waits), r.jobs)
			require.InDelta(t, tt.podSeconds, r.podSeconds, 1e-6)
		})
	}
}

func TestDeployment(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		replicas int
		load     load
		waits    []float64
		done     float64
	}{
		"as many as messages": {5, testLoad(20, times(5, 0)...), times(5, 0), 20},
		"more than messages":  {9, testLoad(20, times(5, 0)...), times(5, 0), 20},
		"two rounds":          {3, testLoad(10, times(6, 0)...), times(3, 0, 10), 20},
		"one by one":          {1, load{[]float64{0, 1, 20}, []float64{5, 2, 1}}, []float64{0, 4, 0}, 21},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := deployment(tt.replicas, tt.load)
			require.Equal(t, tt.waits, r.waits)
			require.InDelta(t, tt.done, r.done, 1e-9)
		})
	}
}

// Whatever the numbers are, each message has one Job, and nothing is lost of its
// time.
func TestConservation(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := testSystem(func(s *system) {
			s.poll, s.start, s.starts = 1+r.Float64()*10, r.Float64()*4, 0.5+r.Float64()*10
			s.lag, s.end = r.Float64()*3, r.Float64()*5
			s.strategy.MaxReplicas = 1 + r.Int64N(20)
		})
		var l load
		for at := 0.0; len(l.at) < 1+int(seed); at += r.ExpFloat64() * float64(r.IntN(5)) {
			l.at, l.work = append(l.at, at), append(l.work, r.Float64()*30)
		}
		got := simulate(s, l, r.Float64()*s.poll)
		hint := fmt.Sprintf("seed %d: %+v", seed, s)
		require.Equal(t, len(l.at), got.jobs, hint)
		require.LessOrEqual(t, got.atOnce, s.strategy.MaxReplicas, hint)
		works, last, done, sum := 0.0, 0.0, 0.0, 0.0
		for i, w := range got.waits {
			require.GreaterOrEqual(t, w, s.start-1e-6, hint)
			claimed := l.at[i] + w
			require.GreaterOrEqual(t, claimed, last, "first in, first out; %s", hint)
			last, done = claimed, max(done, claimed+l.work[i])
			works, sum = works+l.work[i], sum+w
		}
		require.InDelta(t, last, got.claimed, 1e-6, hint)
		require.InDelta(t, done, got.done, 1e-6, hint)
		own := works + float64(got.jobs)*(s.start+min(s.lag, s.end))
		require.GreaterOrEqual(t, got.podSeconds, own-1e-6, hint)
		require.LessOrEqual(t, got.podSeconds, own+sum+1e-6, "no Job waits longer for its start than its message; %s", hint)
		require.LessOrEqual(t, deployment(int(s.strategy.MaxReplicas), l).done, got.done+1e-6, "as many pods that are always there are not slower; %s", hint)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	values := []float64{4, 1, 3, 2, 5}
	require.InDelta(t, 3, quantile(values, 0.5), 0)
	require.InDelta(t, 5, quantile(values, 0.95), 0)
	require.InDelta(t, 1, quantile(values, 0), 0)
	require.InDelta(t, 0, quantile(nil, 0.5), 0)
	require.Equal(t, []float64{4, 1, 3, 2, 5}, values, "it does not sort what it is given")
}

// Its time for each message must not grow with the number of messages:
//
//	go test ./plan -run '^$' -bench .
func BenchmarkSimulate(b *testing.B) {
	for _, n := range []float64{1e4, 1e5, 1e6} {
		b.Run(fmt.Sprintf("%.0e messages", n), func(b *testing.B) {
			s := settings{rate: 100, during: n / 100, work: spread{5, 60}, seed: 1}
			s.system = testSystem(func(s *system) { s.strategy.MaxReplicas = 5000 })
			l := s.load()
			for b.Loop() {
				require.False(b, math.IsNaN(simulate(s.system, l, 0).done))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(l.at)), "ns/message")
		})
	}
}
