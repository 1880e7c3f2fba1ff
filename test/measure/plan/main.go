// plan predicts how a ScaledJob follows a load, in simulated time and with the
// sandbox's copy of KEDA's decision: how long messages wait, how many Jobs there
// are, and what they cost beside a Deployment. docs/planning.md says what the
// model knows and what it does not.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "plan:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	s, err := parse(args, out)
	if err != nil {
		return err
	}
	if s.check != "" {
		return check(s.system, s.check, out)
	}
	return plan(s, out)
}

// settings are the flags. There is a rate or there are bursts.
type settings struct {
	system
	rate   float64 // messages per second
	during float64 // seconds
	bursts bursts
	work   spread
	seed   uint64
	check  string
}

// tooMany bounds the memory: that many messages take half a gigabyte.
const tooMany = 10_000_000

// parse reads the flags. Its error says what to write instead.
func parse(args []string, out io.Writer) (settings, error) {
	s := settings{during: 3600, work: spread{20, 20}}
	s.strategy.Name, s.strategy.Target = "accurate", 1
	s.poll, s.start, s.lag, s.end = 1, 1, 0.7, 2
	flags := flag.NewFlagSet("plan", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Float64Var(&s.rate, "rate", 0, "messages per second, arriving at random, for the time of -for")
	flags.Var((*seconds)(&s.during), "for", "how long messages arrive")
	flags.Var(&s.bursts, "bursts", "instead of -rate, messages at once: 5, or `5@0s,5@8s,5@16s`")
	flags.Var(&s.work, "work", "a message's work: a `time` or, drawn evenly, a range: 5s-60s")
	flags.Int64Var(&s.strategy.MaxReplicas, "max", 10, "maxReplicaCount")
	flags.Var((*seconds)(&s.poll), "poll", "pollingInterval")
	flags.Uint64Var(&s.seed, "seed", 1, "of the random arrivals and work")
	flags.StringVar(&s.check, "check", "", "compare with the measurements in this `file`; of the other flags, only the cluster's count then")
	flags.Var((*seconds)(&s.start), "start", "the cluster: from a Job's creation to its claim, when it starts alone")
	flags.Float64Var(&s.starts, "starts", 3, "the cluster: how many pods it can start, or clear away, a second")
	flags.Var((*seconds)(&s.lag), "lag", "the cluster: until KEDA sees that a pod is ready or has ended")
	flags.Var((*seconds)(&s.end), "end", "the cluster: from the acknowledgement until KEDA sees the Job as finished, when it ends alone")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(out)
		flags.Usage()
	}
	if err != nil {
		return s, err
	}
	var problems []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	must(flags.NArg() == 0, "there is no argument %q, only flags: see -h", flags.Arg(0))
	must(s.poll >= 1, "-poll %s: KEDA looks at most once a second", duration(s.poll))
	must(s.strategy.MaxReplicas >= 1 && s.strategy.MaxReplicas <= 100_000, "-max %d: allow 1 to 100000 Jobs", s.strategy.MaxReplicas)
	must(s.starts > 0, "-starts %g: the cluster must be able to start pods", s.starts)
	if s.check == "" {
		must(s.rate > 0 && s.bursts == nil || s.rate == 0 && s.bursts != nil, "say what arrives, one of the two: -rate 0.2 (messages per second) or -bursts 5@0s,5@8s")
		must(s.work.from > 0, "-work %s: work takes longer than 0s", &s.work)
		must(s.rate*s.during+s.bursts.sum() <= tooMany, "more than %d messages: make -for shorter, or -bursts smaller", tooMany)
	}
	return s, errors.Join(problems...)
}

// load draws what arrives, and how long each message's work takes.
func (s settings) load() load {
	r := rand.New(rand.NewPCG(s.seed, 0))
	var l load
	for _, b := range s.bursts {
		l.at = append(l.at, slices.Repeat([]float64{b.at}, b.n)...)
	}
	if s.rate > 0 {
		for at := r.ExpFloat64() / s.rate; at < s.during; at += r.ExpFloat64() / s.rate {
			l.at = append(l.at, at)
		}
	}
	for range l.at {
		l.work = append(l.work, s.work.from+r.Float64()*(s.work.to-s.work.from))
	}
	return l
}

// seconds is a flag that takes a bare number as seconds, as the manifest does.
type seconds float64

func (s *seconds) String() string { return duration(float64(*s)) }

func (s *seconds) Set(text string) error {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New("write 5s, 1m30s or 2h")
	}
	*s = seconds(d.Seconds())
	return nil
}

// duration writes seconds as a time that is easy to read.
func duration(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Minute {
		return d.Round(time.Second / 10).String()
	}
	return d.Round(time.Second).String()
}

// spread is a range of times.
type spread struct{ from, to float64 }

func (s *spread) String() string {
	if s.from == s.to {
		return duration(s.from)
	}
	return duration(s.from) + "-" + duration(s.to)
}

func (s *spread) Set(text string) error {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	err := errors.Join((*seconds)(&s.from).Set(from), (*seconds)(&s.to).Set(to))
	if err != nil || s.from > s.to {
		return errors.New("write a time such as 20s, or a range such as 5s-60s")
	}
	return nil
}

// burst is that many messages at once.
type burst struct {
	n  int
	at float64
}

type bursts []burst

func (b bursts) sum() float64 {
	sum := 0.0
	for _, one := range b {
		sum += float64(one.n)
	}
	return sum
}

func (b *bursts) String() string { return "" } // there is no default

func (b *bursts) Set(text string) error {
	*b = nil
	for one := range strings.SplitSeq(text, ",") {
		n, at, _ := strings.Cut(one, "@")
		number, err := strconv.Atoi(n)
		var when seconds
		if err != nil || number < 1 || when.Set(cmp.Or(at, "0s")) != nil {
			return errors.New("write 5, or for several 5@0s,5@8s")
		}
		*b = append(*b, burst{number, float64(when)})
	}
	slices.SortFunc(*b, func(x, y burst) int { return cmp.Compare(x.at, y.at) })
	return nil
}
