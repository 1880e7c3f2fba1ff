// bench compares the services with minimal programs on the raw clients (raw/), and
// with an older build of the services if -old names one. It needs the servers that
// the variables name, and wrk: make bench.
//
// A shared machine is faster in one minute than in the next. So the subjects of a
// comparison take turns, in several rounds, and the result is a ratio: that of the
// two values of one round. The table shows the median of the rounds with the least
// and the greatest.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The subjects of a comparison.
const (
	raw     = "raw"
	current = "new"
	older   = "old"
)

// build is one build of the services.
type build struct {
	subject string
	bin     string // the folder of its programs
}

func (b build) program(name string) string { return filepath.Join(b.bin, name) }

// bench is one run. Its exported fields are the results as JSON.
type bench struct {
	Date     time.Time
	Command  string
	Commits  map[string]string // by subject
	Machine  string
	RabbitMQ string
	Rounds   int
	Rows     []*row

	builds []build // the current one, and perhaps an older one
	dir    string  // for logs and small files
}

var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"send", (*bench).send},
	{"batch", (*bench).batch},
	{"data", (*bench).data},
	{"job", (*bench).job},
	{"memory", (*bench).memory},
	{"size", (*bench).size},
}

func main() {
	only := flag.String("only", "", "parts to run, separated by commas: send, batch, data, job, memory, size; empty: all")
	bin := flag.String("bin", "bin", "folder of complex-app, processor-job and raw")
	old := flag.String("old", "", "folder of an older complex-app and processor-job, to measure beside them")
	file := flag.String("json", "", "file for the results as JSON")
	b := &bench{Date: time.Now(), Command: strings.Join(os.Args, " "), Commits: map[string]string{}}
	flag.IntVar(&b.Rounds, "rounds", 5, "turns of each subject")
	flag.Parse()
	b.builds = []build{{current, *bin}}
	if *old != "" {
		b.builds = append(b.builds, build{older, *old})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *only, *file); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, only, file string) (err error) {
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
	if err := b.describe(ctx); err != nil {
		return err
	}
	// the raw programs declare no queue: complex-app does
	app, err := b.startApp(ctx, b.builds[0])
	if err != nil {
		return err
	}
	app.stop()
	for _, p := range parts {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if len(b.Rows) == 0 {
		return fmt.Errorf("-only %s: there is no such part", only)
	}
	b.print(os.Stdout)
	if file == "" {
		return nil
	}
	content, err := json.MarshalIndent(b, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, '\n'), 0o644)
}

// describe notes what the results depend on.
func (b *bench) describe(ctx context.Context) error {
	for _, build := range b.builds {
		version, err := output(ctx, build.program("complex-app"), nil, "-version")
		if err != nil {
			return err
		}
		b.Commits[build.subject] = string(bytes.TrimSpace(bytes.TrimPrefix(version, []byte("complex-app"))))
	}
	version, err := b.raw(ctx, nil, "version")
	b.RabbitMQ = version
	cpu := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, found := strings.Cut(string(info), "model name\t: "); found {
			cpu, _, _ = strings.Cut(rest, "\n")
		}
	}
	b.Machine = fmt.Sprintf("%d cores of %s, %s", runtime.NumCPU(), cpu, runtime.Version())
	return err
}

// compare measures in rounds. In each round, every subject of every comparison has
// one turn, and another subject begins.
func (b *bench) compare(ctx context.Context, all ...comparison) error {
	for _, c := range all {
		b.Rows = append(b.Rows, c.rows...)
	}
	for round := range b.Rounds {
		for _, c := range all {
			for i := range c.turns {
				t := c.turns[(round+i)%len(c.turns)]
				if _, err := b.raw(ctx, nil, "reset"); err != nil {
					return err
				}
				values, err := t.measure(ctx)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.rows[0].Name, t.subject, err)
				}
				for i, r := range c.rows {
					r.Values[t.subject] = append(r.Values[t.subject], values[i])
					fmt.Fprintf(os.Stderr, "%s round %d of %d: %s, %s: %s\n", time.Now().Format(time.TimeOnly),
						round+1, b.Rounds, r.Name, t.subject, number(values[i]))
				}
			}
		}
	}
	return nil
}
