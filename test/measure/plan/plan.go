package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"text/tabwriter"
)

// So many messages are simulated for each number that is printed, at least; a
// short load several times, with another phase each time. A long one meets every
// phase by itself.
const enough, maxPhases = 20_000, 20

// phases are evenly spread: nobody knows when KEDA will look.
func phases(s system, l load) results {
	n := min(max(1, enough/len(l.at)), maxPhases)
	var all results
	for i := range n {
		all = append(all, simulate(s, l, (float64(i)+0.5)/float64(n)*s.poll))
	}
	return all
}

type results []result

// mean and span are over the phases.
func (r results) mean(of func(result) float64) float64 {
	sum := 0.0
	for _, one := range r {
		sum += of(one)
	}
	return sum / float64(len(r))
}

func (r results) span(of func(result) float64) (from, to float64) {
	from, to = math.Inf(1), math.Inf(-1)
	for _, one := range r {
		from, to = min(from, of(one)), max(to, of(one))
	}
	return from, to
}

func wait(q float64) func(result) float64 {
	return func(r result) float64 { return quantile(r.waits, q) }
}
func jobs(r result) float64       { return float64(r.jobs) }
func claimed(r result) float64    { return r.claimed }
func done(r result) float64       { return r.done }
func atOnce(r result) float64     { return float64(r.atOnce) }
func podSeconds(r result) float64 { return r.podSeconds }

// capacity is how many messages per second the Jobs can take while the queue is
// never empty: measured over whole waves of Jobs, in the middle of many.
func capacity(s settings) float64 {
	wave := int(s.strategy.MaxReplicas)
	waves := max(5, 2000/wave)
	s.rate, s.bursts = 0, bursts{{waves * wave, 0}}
	r := simulate(s.system, s.load(), 0)
	from, to := waves*2/5*wave, waves*4/5*wave
	return float64(to-from) / (r.waits[to] - r.waits[from])
}

// needed is the smallest maxReplicaCount with which the Jobs keep up, or 0.
func needed(s settings) int {
	// a slot's turn, with the longest wait for the next look
	turn := s.start + s.work.to + s.end + s.poll
	limit := int(4*s.rate*turn) + 1
	n := 1 + sort.Search(limit, func(n int) bool {
		s.strategy.MaxReplicas = int64(n + 1)
		return capacity(s) > s.rate
	})
	if n > limit {
		return 0
	}
	return n
}

// fewest is the smallest number of replicas with which a Deployment keeps 95 % of
// the waits at most that long.
func fewest(l load, p95 float64) int {
	return 1 + sort.Search(len(l.at), func(n int) bool { return wait(0.95)(deployment(n+1, l)) <= p95 })
}

func plan(s settings, out io.Writer) error {
	l := s.load()
	if len(l.at) == 0 {
		return fmt.Errorf("-rate %g: no message has come within %s by chance; make -for longer", s.rate, duration(s.during))
	}
	fmt.Fprintf(out, "%d messages, work of %s; pollingInterval %s, maxReplicaCount %d\n", len(l.at), &s.work, duration(s.poll), s.strategy.MaxReplicas)
	fmt.Fprintf(out, "The cluster: %s. Others: see -h.\n\n", s.cluster())
	overloaded := s.rate > 0 && overload(s, out)
	with := phases(s.system, l)
	_, most := with.span(atOnce)
	until, cost := with.mean(done), with.mean(podSeconds)
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	row := func(name string, r results, mean, most, cost float64) {
		_, worst := r.span(wait(1))
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.1f\t%.0f\t%.0f\t\n", name, duration(r.mean(wait(0.5))), duration(r.mean(wait(0.95))),
			duration(worst), duration(r.mean(done)), mean, most, cost)
	}
	fmt.Fprintln(t, "\twait: median\t95 %\tworst\tall done after\tpods: mean\tmost\tpod-seconds\t")
	row(fmt.Sprintf("%.0f Jobs", with.mean(jobs)), with, cost/(until+s.lag), most, cost)
	n := fewest(l, with.mean(wait(0.95)))
	always := float64(n) * until // it is there for as long as the load lasts with Jobs
	for _, n := range slices.Compact([]int{n, int(s.strategy.MaxReplicas)}) {
		row(fmt.Sprintf("Deployment of %d", n), results{deployment(n, l)}, float64(n), float64(n), float64(n)*until)
	}
	t.Flush()
	if from, to := with.span(done); s.rate == 0 {
		fmt.Fprintf(out, "\nAll is done after %s to %s, depending on when KEDA looks.\n", duration(from), duration(to))
	}
	if !overloaded {
		fmt.Fprintf(out, "\nA Deployment with waits as short (95 %%) needs %d replicas. Until all is done it costs %.0f pod-seconds,\nthe Jobs %.0f: ", n, always, cost)
		if cost <= always {
			fmt.Fprintf(out, "Jobs are cheaper by %.0f %%, and cost nothing while nothing arrives.\n", 100-cost/always*100)
		} else {
			fmt.Fprintf(out, "the Deployment is cheaper by %.0f %%, unless %s or more without messages follow each time.\n",
				100-always/cost*100, duration(cost/float64(n)-until))
		}
	}
	sweep(s, l, out)
	return nil
}

// overload says, and tells, whether more arrives than the Jobs can take.
func overload(s settings, out io.Writer) bool {
	c := capacity(s)
	if c > s.rate {
		fmt.Fprintf(out, "These Jobs can take up to %.3g messages per second, and %.3g arrive.\n\n", c, s.rate)
		return false
	}
	fmt.Fprintf(out, "OVERLOAD: these Jobs can take %.3g messages per second, and %.3g arrive: the queue grows without end,\nby %.0f per hour. ", c, s.rate, (s.rate-c)*3600)
	if n := needed(s); n > 0 {
		fmt.Fprintf(out, "It takes a maxReplicaCount of at least %d.\n\n", n)
	} else {
		fmt.Fprintf(out, "No maxReplicaCount helps, for the cluster starts %g pods per second:\nlet each Job take several messages, or use a Deployment.\n\n", s.starts)
	}
	return true
}

// sweep shows what other settings would do.
func sweep(s settings, l load, out io.Writer) {
	n := min(len(l.at), enough)
	l = load{l.at[:n], l.work[:n]}
	polls := []float64{1, 2, 5, 10, 30, s.poll}
	slices.Sort(polls)
	limit := s.strategy.MaxReplicas
	fmt.Fprint(out, "\n95 % of the waits, and the worst, by maxReplicaCount and pollingInterval:\n\n")
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	polls = slices.Compact(polls)
	for _, s.poll = range polls {
		fmt.Fprintf(t, "\t%s", duration(s.poll))
	}
	fmt.Fprintln(t, "\t")
	for _, s.strategy.MaxReplicas = range slices.Compact([]int64{max(1, limit/4), max(1, limit/2), limit, 2 * limit, 4 * limit}) {
		fmt.Fprint(t, s.strategy.MaxReplicas)
		for _, s.poll = range polls {
			if s.rate > 0 && capacity(s) <= s.rate {
				fmt.Fprint(t, "\toverload")
				continue
			}
			r := phases(s.system, l)
			_, worst := r.span(wait(1))
			fmt.Fprintf(t, "\t%s  %s", duration(r.mean(wait(0.95))), duration(worst))
		}
		fmt.Fprintln(t, "\t")
	}
	t.Flush()
}
