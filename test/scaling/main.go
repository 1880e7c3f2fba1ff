// scaling runs loads against complex-app on a cluster, follows every Job that
// KEDA starts for them, and prints how many there were and how long the messages
// waited. It needs kubectl, and the project deployed in its current namespace;
// the records stay there. It ends with an error when a load had not exactly as
// many Jobs as messages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	names := flag.String("loads", "five,bursts,thirty,trickle,hundred", "which loads to run, in this order: "+strings.Join(loadNames(), ", "))
	picture := flag.String("picture", "", "a folder for an SVG timeline of each load")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, strings.Split(*names, ","), *picture); err != nil {
		fmt.Fprintln(os.Stderr, "scaling:", err)
		os.Exit(1)
	}
}

// limit bounds one load, from its first event to its last pod's end.
const limit = 15 * time.Minute

// run prints a line for each load. It goes on after a load that failed to drain,
// and says so at the end.
func run(ctx context.Context, names []string, picture string) error {
	if err := known(names); err != nil {
		return err
	}
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	var failed []error
	fmt.Println(header)
	for _, name := range names {
		limited, cancel := context.WithTimeout(ctx, limit)
		r, err := c.measure(limited, name, loads[name])
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Println(r.row())
		if picture != "" {
			if err := r.draw(picture); err != nil {
				return err
			}
		}
		failed = append(failed, r.check())
	}
	return errors.Join(failed...)
}

func known(names []string) error {
	for _, name := range names {
		if _, ok := loads[name]; !ok {
			return fmt.Errorf("-loads %s: there are %s", name, strings.Join(loadNames(), ", "))
		}
	}
	return nil
}
