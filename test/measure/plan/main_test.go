package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/sandbox/scaler"
)

func TestFlags(t *testing.T) {
	t.Parallel()
	s, err := parse([]string{"-bursts", "5@8s,3,2@1m", "-work", "5s-1m", "-max", "7", "-poll", "2"}, nil)
	require.NoError(t, err)
	require.Equal(t, bursts{{3, 0}, {5, 8}, {2, 60}}, s.bursts)
	require.Equal(t, spread{5, 60}, s.work)
	require.InDelta(t, 2, s.poll, 0, "a bare number is seconds, as in the manifest")
	require.Equal(t, int64(7), s.strategy.MaxReplicas)
	l := s.load()
	require.Equal(t, []float64{0, 0, 0, 8, 8, 8, 8, 8, 60, 60}, l.at)
	for _, work := range l.work {
		require.True(t, 5 <= work && work <= 60, work)
	}
	require.Equal(t, l, s.load(), "the same seed is the same load")
}

// Without -max and -poll, what is deployed is planned.
func TestDefaults(t *testing.T) {
	t.Parallel()
	deployed, err := scaler.Load("../../../deploy")
	require.NoError(t, err)
	s, err := parse([]string{"-bursts", "5"}, nil)
	require.NoError(t, err)
	require.InDelta(t, deployed.Interval.Seconds(), s.poll, 0, "change the default in parse")
	require.Equal(t, deployed.Strategy, s.strategy, "change the default in parse")
	require.True(t, deployed.PendingUntilReady, "the model knows nothing else")
}

func TestRate(t *testing.T) {
	t.Parallel()
	s, err := parse([]string{"-rate", "50", "-for", "1000s"}, nil)
	require.NoError(t, err)
	l := s.load()
	require.InEpsilon(t, 50_000, len(l.at), 0.02)
	require.IsNonDecreasing(t, l.at)
	require.Less(t, l.at[len(l.at)-1], 1000.0)
}

func TestBadFlags(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ args, want string }{
		"nothing arrives":       {"", "say what arrives, one of the two: -rate 0.2 (messages per second) or -bursts 5@0s,5@8s"},
		"both":                  {"-rate 1 -bursts 5", "say what arrives, one of the two"},
		"a negative rate":       {"-rate -1", "say what arrives, one of the two"},
		"a rate of words":       {"-rate fast", `invalid value "fast" for flag -rate`},
		"work without a unit":   {"-rate 1 -work 5x", `invalid value "5x" for flag -work: write a time such as 20s, or a range such as 5s-60s`},
		"work backwards":        {"-rate 1 -work 60s-5s", "write a time such as 20s, or a range such as 5s-60s"},
		"no work":               {"-rate 1 -work 0s", "-work 0s: work takes longer than 0s"},
		"poll below a second":   {"-rate 1 -poll 500ms", "-poll 500ms: KEDA looks at most once a second"},
		"a negative poll":       {"-rate 1 -poll -5s", `invalid value "-5s" for flag -poll: write 5s, 1m30s or 2h`},
		"no Jobs":               {"-rate 1 -max 0", "-max 0: allow 1 to 100000 Jobs"},
		"no pods":               {"-rate 1 -starts 0", "-starts 0: the cluster must be able to start pods"},
		"bursts of nothing":     {"-bursts 0@5s", `invalid value "0@5s" for flag -bursts: write 5, or for several 5@0s,5@8s`},
		"too many":              {"-rate 1e6", "more than 10000000 messages: make -for shorter, or -bursts smaller"},
		"none by chance":        {"-rate 0.0001 -for 1s", "-rate 0.0001: no message has come within 1s by chance; make -for longer"},
		"an unknown flag":       {"-speed 1", "flag provided but not defined: -speed"},
		"an argument":           {"-rate 1 RATE=5", `there is no argument "RATE=5", only flags: see -h`},
		"two problems":          {"-rate 1 -max 0 -poll 0", "-poll 0s: KEDA looks at most once a second\n-max 0: allow 1 to 100000 Jobs"},
		"no file":               {"-check none.json", "-check: open none.json"},
		"a file of another use": {"-check main.go", "-check main.go: invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(strings.Fields(tt.args), &bytes.Buffer{})
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// cluster is one with round numbers.
const cluster = " -poll 5 -start 1s -starts 5 -lag 0.7s -end 2s -max 10 "

func planned(t *testing.T, args string) string {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, run(strings.Fields(cluster+args), &out))
	return out.String()
}

func TestPlan(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args string
		want []string
	}{
		"five at once": {"-starts 1000000 -bursts 5", []string{
			"5 messages, work of 20s; pollingInterval 5s, maxReplicaCount 10",
			"All is done after 21.1s to 25.9s, depending on when KEDA looks.", // 20 phases, from 0.125 to 4.875
			"needs 5 replicas. Until all is done it costs 118 pod-seconds",    // 5 pods for 23.5 s
			"the Jobs 109: Jobs are cheaper by 8 %",                           // 5 Jobs of 1 + 20 + 0.7 s
		}},
		"a rate that the Jobs can take": {"-rate 0.2", []string{
			"These Jobs can take up to 0.4 messages per second, and 0.2 arrive.", // 10 Jobs in 25 s
		}},
		"a rate that is too much": {"-rate 0.5", []string{
			"OVERLOAD: these Jobs can take 0.4 messages per second, and 0.5 arrive: the queue grows without end,\nby 360 per hour. It takes a maxReplicaCount of at least 13.",
			"overload",
		}},
		"a rate that the cluster cannot take":           {"-rate 6 -for 2m", []string{"No maxReplicaCount helps, for the cluster starts 5 pods per second"}},
		"short work, for which a Deployment is cheaper": {"-rate 1 -work 1s", []string{"the Deployment is cheaper by"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := planned(t, tt.args)
			for _, want := range tt.want {
				require.Contains(t, out, want)
			}
			require.NotRegexp(t, `NaN|Inf|-\d+(\.\d+)?s`, out)
			require.Equal(t, out, planned(t, tt.args), "the same seed is the same output")
		})
	}
	require.NotEqual(t, planned(t, "-rate 0.2"), planned(t, "-rate 0.2 -seed 2"))
}

// The maxReplicaCount that is said to be enough must be, and one less must not.
func TestNeeded(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"-rate 0.5", "-rate 2 -work 5s-60s", "-rate 2 -work 1s", "-rate 0.01 -work 1m"} {
		s, err := parse(strings.Fields(args+cluster), nil)
		require.NoError(t, err)
		n := needed(s)
		require.Positive(t, n, args)
		s.strategy.MaxReplicas = int64(n)
		require.Greater(t, capacity(s), s.rate, args)
		if n > 1 {
			s.strategy.MaxReplicas = int64(n - 1)
			require.LessOrEqual(t, capacity(s), s.rate, args)
		}
	}
}

func TestFewest(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		load load
		p95  float64
		want int
	}{
		"one each, to wait for nothing": {testLoad(20, times(5, 0)...), 0, 5},
		"two rounds":                    {testLoad(20, times(6, 0)...), 20, 3},
		"one is enough":                 {testLoad(1, 0, 10, 20), 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, fewest(tt.load, tt.p95))
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const five = `"load": "five", "sent": [0,0,0,0,0], "work": 20, "poll": 5, "max": 10`
	for name, tt := range map[string]struct{ runs, row, problem string }{
		"within":             {`{` + five + `, "firstPod": 1, "pods": 5, "done": 22.5, "waitMedian": 2}`, "five 1.0 5 / 5 2 22 / 22.5 2 / 2 2 2", ""},
		"off":                {`{` + five + `, "firstPod": 1, "done": 19.5}`, "five 1.0 5 2 22 / 19.5 ! 2 2 2", "five, all done: 22 / 19.5"},
		"a wait that is off": {`{` + five + `, "firstPod": 1, "waitMax": 4}`, "2 / 4", ""},
		"a spare Job":        {`{` + five + `, "pods": 6}`, "five ? 5 / 6 !", "five, Jobs: 5 / 6"},
		"one Job too many":   {`{"load": "many", "sent": [` + strings.Repeat("0,", 29) + `0], "work": 20, "poll": 5, "max": 30, "pods": 31}`, "many ? 30 / 31 !", "many, Jobs: 30 / 31"},
		"in any phase":       {`{` + five + `, "done": 25.5}`, "21.1–25.9 / 25.5", ""},
		"in no phase":        {`{` + five + `, "done": 29}`, "21.1–25.9 / 29 !", "five, all done: 21.1–25.9 / 29"},
		"a slow worker":      {`{` + five + `, "firstPod": 1, "claim": 12, "done": 34}`, "five 1.0 5 14 34 / 34", ""},
		"two runs, another variant, more fields": {
			`{` + five + `, "firstPod": 1, "done": 22}` + "\n" + `{"variant": "eager/late/amqp"}` + "\n" + `{"variant": "as-deployed", "lost": 0, ` + five + `, "firstPod": 2, "done": 23}`,
			"five 1.0 5 2 22 / 22 2 2 2 five 2.0 5 3 23 / 23 3 3 3", "",
		},
		"no run":                  {``, "", "it holds no run of the ScaledJob as it is deployed"},
		"a run without its work":  {`{"load": "five", "sent": [0], "poll": 5, "max": 10}`, "", `a run of "five" needs sent, in order, and work, poll and max`},
		"a run in a wrong order":  {`{"load": "five", "sent": [1,0], "work": 20, "poll": 5, "max": 10}`, "", "needs sent, in order"},
		"a run of another format": {`[]`, "", "cannot unmarshal array"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "measured.json")
			require.NoError(t, os.WriteFile(file, []byte(tt.runs), 0o600))
			var out bytes.Buffer
			err := run([]string{"-check", file, "-start", "1s", "-starts", "1000000", "-end", "2s"}, &out)
			if tt.problem == "" {
				require.NoError(t, err)
				require.Contains(t, out.String(), "As many Jobs as measured, and all done within 10 % of the time.")
			} else {
				require.ErrorContains(t, err, tt.problem)
			}
			require.Contains(t, strings.Join(strings.Fields(out.String()), " "), tt.row)
		})
	}
}

// What was measured on the cluster that the defaults describe, docs/measured.md.
func TestAgainstTheCluster(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := run([]string{"-check", "../../../docs/measured/scaling.json"}, &out)
	t.Log(out.String())
	require.NoError(t, err)
}
