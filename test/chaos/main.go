// chaos sends events through the whole system while its Jobs are killed, its servers
// restarted, its connections cut and stalled, and complex-app attacked. Then it compares every
// event that was accepted with the records and the dead letters.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"golang.org/x/sync/errgroup"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

const (
	// settled is how long nothing must move before what is missing is lost. It
	// is more than RabbitMQ needs to take a dead connection for dead.
	settled = 30 * time.Second
	// maxTrails is how many offending events are explained.
	maxTrails = 10
)

var errTimeOver = errors.New("the run's time is over")

// options are the flags.
type options struct {
	seed                      uint64
	events, clients, restarts int
	limit                     time.Duration
	bin, deploy               string
	out                       io.Writer
}

func main() {
	o := options{out: os.Stdout}
	flag.Uint64Var(&o.seed, "seed", 1, "decides all that chance decides")
	flag.IntVar(&o.events, "events", 2000, "how many events are sent")
	flag.IntVar(&o.clients, "clients", 16, "how many clients send them")
	flag.IntVar(&o.restarts, "restarts", 3, "how often RabbitMQ and MongoDB are restarted, each")
	flag.DurationVar(&o.limit, "limit", 30*time.Minute, "when the run has failed; clients give up at the half of it")
	flag.StringVar(&o.bin, "bin", "bin", "`folder` with the programs")
	flag.StringVar(&o.deploy, "deploy", "deploy", "`folder` with the manifests")
	flag.Parse()
	debug.SetGCPercent(400) // FerretDB runs in here, and makes much garbage
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for an orderly end
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// run makes one run and prints its table. An event that is lost or doubled is
// an error, and leaves the folder with every log behind.
func run(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, errTimeOver)
	defer cancel()
	began := time.Now()
	dir, err := os.MkdirTemp("", "keda-p2-chaos-")
	if err != nil {
		return err
	}
	s := &system{plan: newPlan(o.seed, o.events, o.clients, o.restarts), dir: dir, bin: o.bin, locks: map[string]*sync.Mutex{}, tally: tally{n: map[string]int{}}}
	s.life.Store(int64(firstLife))
	defer func() {
		s.close()
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			err = fmt.Errorf("%w\nthe logs are in %s", err, dir)
		}
	}()
	if err := s.start(ctx, o.deploy, func(text string) { fmt.Fprintln(o.out, text) }); err != nil {
		return err
	}
	c, h := &clients{address: "http://" + s.proxies[toApp].Listen}, &hostile{}
	c.http.Timeout = requestTimeout
	stop := s.show(o, c, began)
	err = s.storm(ctx, c, h, o)
	stop()
	if err != nil {
		return err
	}

	before, err := s.settle(ctx, c.sent)
	if err != nil {
		return err
	}
	// what was given up is sent back, and must not be given up again
	var redriven struct{ Redriven int }
	if err := s.ask(ctx, "POST", "/dead-letters/redrive", &redriven); err != nil {
		return err
	}
	after, err := s.settle(ctx, c.sent)
	if err != nil {
		return err
	}
	s.table(o, c, h, before.verdict, after.verdict, redriven.Redriven, time.Since(began))
	for _, found := range []outcome{before, after} {
		if err := found.err(); err != nil {
			for i, id := range found.offenders() {
				if i < maxTrails {
					fmt.Fprint(o.out, s.trail(id, c.sent, found.stored))
				}
			}
			return err
		}
	}
	if after.dead+after.both > 0 {
		return fmt.Errorf("%d dead letters are left after the redrive", after.dead+after.both)
	}
	return nil
}

// storm sends the events and carries out the plan. It returns when all of them
// are sent, no Job works and nothing waits.
func (s *system) storm(ctx context.Context, c *clients, h *hostile, o options) error {
	over := make(chan struct{})
	progress := func() float64 {
		return float64(c.acceptedSoFar()+s.scaler.Totals().Succeeded) / float64(2*o.events)
	}
	all, running := errgroup.WithContext(ctx)
	attacking, retreat := context.WithCancel(running)
	all.Go(func() error { return s.inflict(running, progress, over) })
	all.Go(func() error { h.run(attacking, s.appEnv["HTTP_ADDR"], o.seed); return nil })
	all.Go(func() error {
		defer close(over)
		sending, cancel := context.WithTimeout(running, o.limit/2)
		defer cancel()
		err := c.run(sending, s.plan.events, o.clients)
		retreat() // what follows is between the servers and the Jobs
		if err != nil {
			return err
		}
		return s.quiet(running)
	})
	if err := all.Wait(); err != nil {
		return err
	}
	if err := s.checkApp(); err != nil {
		return err
	}
	s.calm.Store(true)
	// no connection of a dead Job holds a message any more
	jobs := s.proxies[jobsToRabbitMQ]
	jobs.Stop()
	return again(ctx, jobs.Start)
}

// quiet waits until no message waits and no Job works.
func (s *system) quiet(ctx context.Context) error {
	var since time.Time
	for {
		waiting, err := s.waiting(ctx)
		switch {
		case err != nil || waiting > 0 || s.running() > 0:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > time.Second:
			return nil
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return context.Cause(ctx)
		}
	}
}

// outcome is what was found when nothing moved any more.
type outcome struct {
	verdict
	stored []records.Record
}

// settle waits until every accepted event is accounted for, or nothing has moved
// for so long that nothing will.
func (s *system) settle(ctx context.Context, all []sent) (outcome, error) {
	var deadline time.Time
	for {
		if err := s.quiet(ctx); err != nil {
			return outcome{}, err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(settled)
		}
		found, err := s.look(ctx, all)
		if err == nil && len(found.lost) == 0 || time.Now().After(deadline) {
			return found, err
		}
	}
}

// look reads the records and the dead letters as everybody can, and counts the
// records in the database itself.
func (s *system) look(ctx context.Context, all []sent) (found outcome, err error) {
	var dead []queue.DeadLetter
	if err := s.ask(ctx, "GET", "/data", &found.stored); err != nil {
		return found, err
	}
	if err := s.ask(ctx, "GET", "/dead-letters", &dead); err != nil {
		return found, err
	}
	found.verdict = judge(all, found.stored, dead)
	itself, err := s.stored(ctx)
	if err == nil && len(itself) != len(found.stored) {
		err = fmt.Errorf("GET /data has %d records, the database %d", len(found.stored), len(itself))
	}
	return found, err
}

// show tells how far the run is until the returned function is called: in one
// line on a terminal, otherwise in a line every few seconds.
func (s *system) show(o options, c *clients, began time.Time) (stop func()) {
	every, format := 5*time.Second, "%s\n"
	if f, ok := o.out.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
		every, format = 200*time.Millisecond, "\r\x1b[K%s"
	}
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for ticker := time.NewTicker(every); ; {
			jobs, t := s.scaler.Totals(), &s.tally
			fmt.Fprintf(o.out, format, fmt.Sprintf(
				"%4.0fs  %d of %d accepted   Jobs: %d succeeded, %d failed, %d killed   restarts: RabbitMQ %d, MongoDB %d, complex-app %d   cuts %d, stalls %d",
				time.Since(began).Seconds(), c.acceptedSoFar(), o.events, jobs.Succeeded, jobs.Failed, t.of(sigkill, sigterm),
				t.of(rabbitmqRestarts), t.of(mongodbRestarts), t.of(appRestarts), t.of(cuts...), t.of(stalls...)))
			select {
			case <-ticker.C:
			case <-done:
				ticker.Stop()
				fmt.Fprintln(o.out)
				return
			}
		}
	})
	return func() { close(done); wait.Wait() }
}

// table prints the run as a row of Markdown, so that the rows of several runs
// make one table.
func (s *system) table(o options, c *clients, h *hostile, before, after verdict, redriven int, took time.Duration) {
	jobs, empty, t := s.scaler.Totals(), s.empty(), &s.tally
	columns := [][2]any{
		{"seed", o.seed}, {"sent", len(c.sent)}, {"accepted", c.accepted}, {"refused", len(c.sent) - c.accepted},
		{"done", before.done}, {"dead", before.dead}, {"done and dead", before.both},
		{"redriven", redriven}, {"done then", after.done},
		{"lost", len(after.lost)}, {"doubled", len(after.doubled)}, {"wrong", len(after.wrong) + len(after.foreign)},
		{"Jobs: succeeded/empty/failed", fmt.Sprintf("%d/%d/%d", jobs.Succeeded-empty, empty, jobs.Failed)},
		{"kills: KILL/TERM", fmt.Sprintf("%d/%d", t.of(sigkill), t.of(sigterm))},
		{"restarts: RabbitMQ/MongoDB/complex-app", fmt.Sprintf("%d/%d/%d", t.of(rabbitmqRestarts), t.of(mongodbRestarts), t.of(appRestarts))},
		{"cuts/stalls", fmt.Sprintf("%d/%d", t.of(cuts...), t.of(stalls...))},
		{"attacks", h.attacks.Load()}, {"complex-app's peak, MiB", s.peak >> 20},
		{"seconds", int(took.Seconds())},
	}
	var head, rule, row strings.Builder
	for _, column := range columns {
		fmt.Fprintf(&head, "| %v ", column[0])
		rule.WriteString("| --- ")
		fmt.Fprintf(&row, "| %v ", column[1])
	}
	fmt.Fprintf(o.out, "%s|\n%s|\n%s|\n", head.String(), rule.String(), row.String())
}
