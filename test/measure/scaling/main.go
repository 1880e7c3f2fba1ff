// scaling runs loads against complex-app on a cluster, follows every pod that
// KEDA starts for them, and prints how many there were and how long the messages
// waited. It needs kubectl, and the project deployed in its current namespace;
// the records stay there. What is deployed must do it right: as many Jobs as
// messages, none lost, none worked on twice. Otherwise it ends with an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// limit bounds one load, from its first event to its last pod's end.
const limit = 20 * time.Minute

type options struct {
	loads, variants string
	repeat          int
	pictures, json  string
	compare         string
	animate         string
	budget          bool
}

func main() {
	var o options
	flag.StringVar(&o.loads, "loads", "five,bursts,thirty,slow,hundred,trickle", "which loads to run, in this order: "+strings.Join(loadNames(), ", "))
	flag.StringVar(&o.variants, "variants", asFound, "which variants of the consumer to run them on, or all")
	flag.IntVar(&o.repeat, "repeat", 1, "how often to run it all")
	flag.StringVar(&o.pictures, "pictures", "", "a `folder` for an SVG timeline of each load")
	flag.StringVar(&o.json, "json", "", "a `file` to add the results to, one JSON object a line")
	flag.StringVar(&o.compare, "compare", "", "measure nothing: draw all of a load's results in this `file` into one picture, one for each load")
	flag.StringVar(&o.animate, "animate", "", "measure nothing: draw the results in this `file` into one animated picture, light and dark")
	flag.BoolVar(&o.budget, "budget", false, "also print what each part of a Job's life takes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "scaling:", err)
		os.Exit(1)
	}
}

// run prints a line for each load. It goes on after one that was not done right,
// and says so at the end.
func run(ctx context.Context, o options) (err error) {
	if o.compare != "" {
		return compare(o.compare, o.pictures)
	}
	if o.animate != "" {
		return animate(o.animate, o.pictures)
	}
	chosen, err := choose("-loads", o.loads, loads, func(l load) string { return l.name })
	if err != nil {
		return err
	}
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	consumers, err := choose("-variants", o.variants, variants(c.consumer.jobs()), func(v variant) string { return v.name })
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.consumer.restore(context.WithoutCancel(ctx)))
	}()
	fmt.Println(header)
	var wrong []error
	for range o.repeat {
		for _, v := range consumers {
			for _, l := range chosen {
				r, err := c.limited(ctx, l, v, o.budget)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", v.name, l.name, err)
				}
				fmt.Println(r.row())
				if o.budget {
					r.printBudget(os.Stdout)
				}
				if v.name == asFound {
					wrong = append(wrong, r.check())
				}
				if err := errors.Join(r.draw(o.pictures), r.save(o.json)); err != nil {
					return err
				}
			}
		}
	}
	return errors.Join(wrong...)
}

func (c *cluster) limited(ctx context.Context, l load, v variant, budget bool) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if !budget {
		return c.measure(ctx, l, v)
	}
	t, err := c.startTrace(ctx)
	if err != nil {
		return nil, err
	}
	defer t.stop()
	v.keep = true // the logs are read from the finished Jobs
	r, err := c.measure(ctx, l, v)
	if err != nil {
		return nil, err
	}
	r.trace = t
	return r, t.readLogs(ctx, r.pods)
}

// choose picks some of all by their names, or all.
func choose[T any](option, names string, all []T, name func(T) string) ([]T, error) {
	if names == "all" {
		return all, nil
	}
	var chosen []T
	for n := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(t T) bool { return name(t) == n })
		if i < 0 {
			var known []string
			for _, t := range all {
				known = append(known, name(t))
			}
			return nil, fmt.Errorf("%s %s: there are all, %s", option, n, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func loadNames() []string {
	var names []string
	for _, l := range loads {
		names = append(names, l.name)
	}
	return names
}
