// bench measures the services against the least that does the same with the raw
// clients, on the servers that the variables name: make bench. Each row's subjects
// take turns, several rounds of them, because a shared machine is faster now and
// slower then; what counts are the ratios within a round, and their median. Results
// go to standard output as Markdown, progress to standard error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// servers are those that the variables name.
type servers struct {
	RabbitMQ queue.Config
	MongoDB  records.Config
}

// Validate names every problem with the variables.
func (s *servers) Validate() error { return errors.Join(s.RabbitMQ.Validate(), s.MongoDB.Validate()) }

// bench is one run.
type bench struct {
	servers
	bin    string // the folder of the programs
	dir    string // for logs and small files
	rounds int
	out    io.Writer
}

// part measures some of the rows.
type part struct {
	name, what string
	run        func(context.Context, *bench) error
}

var parts = []part{
	{"send", "POST /send and POST /send/batch against the raw client", benchSend},
	{"pages", "POST /send with a hundred live pages open", benchPages},
	{"data", "GET /data against the raw cursor", benchData},
	{"job", "processor-job against a minimal program", benchJob},
	{"drain", "many messages through the sandbox's stand-in for KEDA", benchDrain},
	{"limits", "idle connections and memory", benchLimits},
}

func main() {
	b := &bench{out: os.Stdout}
	only := flag.String("only", "", "parts to run, with commas between; all when empty")
	flag.StringVar(&b.bin, "bin", "bin", "folder of the programs: complex-app, processor-job, and raw")
	flag.IntVar(&b.rounds, "rounds", 5, "how often each subject has its turn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.runAll(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) runAll(ctx context.Context, only string) (err error) {
	chosen := parts
	if only != "" {
		chosen = nil
		for name := range strings.SplitSeq(only, ",") {
			i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
			if i < 0 {
				var names []string
				for _, p := range parts {
					names = append(names, p.name)
				}
				return fmt.Errorf("there is no part %q; BENCH is one of %s", name, strings.Join(names, ", "))
			}
			chosen = append(chosen, parts[i])
		}
	}
	if err := config.Load(&b.servers); err != nil {
		return err
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "keda-p2-bench-"); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(b.dir)
		} else {
			fmt.Fprintln(os.Stderr, "bench: the services' logs are in", b.dir)
		}
	}()
	if err := b.printEnvironment(ctx); err != nil {
		return err
	}
	for i, p := range chosen {
		began := time.Now()
		b.say("part %d of %d, %s: %s", i+1, len(chosen), p.name, p.what)
		if err := p.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b.say("%s took %s", p.name, time.Since(began).Round(time.Second))
	}
	return nil
}

// say tells how far the run is.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// print writes a piece of the results.
func (b *bench) print(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }
