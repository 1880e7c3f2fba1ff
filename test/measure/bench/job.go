package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const jobsPerTurn = 20

// jobVariables are those of a processor-job with so much work.
func jobVariables(work string) []string {
	return []string{"PROCESSING_TIME=" + work, "PROBE_ADDR=127.0.0.1:0", "LOG_FORMAT=json", "POD_NAME=bench"}
}

// job measures how long processes without work take, from their start.
func (b *bench) job(ctx context.Context) error {
	c := comparison{
		rows: []*row{newRow("a Job, start to claim, ms", goal{AtMost: 1.2}), newRow("a Job, start to exit, ms", goal{})},
		turns: []turn{{raw, func(ctx context.Context) ([]float64, error) {
			return b.runJobs(ctx, b.builds[0].program("raw"), "work")
		}}},
	}
	for _, build := range b.builds {
		c.turns = append(c.turns, turn{build.subject, func(ctx context.Context) ([]float64, error) {
			return b.runJobs(ctx, build.program("processor-job"))
		}})
	}
	return b.compare(ctx, c)
}

// runJobs runs some processes one after the other, each with one message in the
// queue, and returns the medians until the claim and until the exit.
func (b *bench) runJobs(ctx context.Context, program string, args ...string) ([]float64, error) {
	var claims, exits []float64
	for range jobsPerTurn {
		if _, err := b.raw(ctx, nil, "-messages", "1", "reset"); err != nil {
			return nil, err
		}
		began := time.Now()
		out, err := output(ctx, program, jobVariables("0s"), args...)
		exited := time.Since(began)
		if err != nil {
			return nil, err
		}
		claimed, err := claimTime(out)
		if err != nil {
			return nil, err
		}
		claims = append(claims, 1000*claimed.Sub(began).Seconds())
		exits = append(exits, 1000*exited.Seconds())
	}
	return []float64{median(claims), median(exits)}, nil
}

// claimTime finds the claim in a log in JSON.
func claimTime(log []byte) (time.Time, error) {
	for line := range bytes.Lines(log) {
		var l struct {
			Time time.Time
			Msg  string
		}
		if err := json.Unmarshal(line, &l); err != nil {
			return l.Time, err
		}
		if strings.HasPrefix(l.Msg, "claimed") {
			return l.Time, nil
		}
	}
	return time.Time{}, fmt.Errorf("nothing was claimed:\n%s", log)
}

// memory measures both programs: the one ready and idle, the other at work.
func (b *bench) memory(ctx context.Context) error {
	c := comparison{rows: []*row{newRow("complex-app after its start, MiB", goal{AtMost: 28}), newRow("processor-job at work, peak, MiB", goal{AtMost: 18})}}
	for _, build := range b.builds {
		c.turns = append(c.turns, turn{build.subject, func(ctx context.Context) ([]float64, error) {
			a, err := b.startApp(ctx, build)
			if err != nil {
				return nil, err
			}
			defer a.stop()
			job, err := b.residentJob(ctx, build)
			if err != nil {
				return nil, err
			}
			started, err := resident(a.process.Pid(), "VmRSS")
			return []float64{started, job}, err
		}})
	}
	return b.compare(ctx, c)
}

// residentJob starts a processor-job and looks at it when it has stored its record.
func (b *bench) residentJob(ctx context.Context, from build) (float64, error) {
	if _, err := b.raw(ctx, nil, "-messages", "1", "reset"); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, from.program("processor-job"))
	cmd.Env = append(os.Environ(), jobVariables("1m")...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "stored") {
			return resident(cmd.Process.Pid, "VmHWM")
		}
	}
	return 0, errors.New("processor-job has ended and stored nothing")
}

// size adds what each program has in an image, where it has no symbols.
func (b *bench) size(context.Context) error {
	for _, name := range []string{"complex-app", "processor-job"} {
		r := newRow(name+" without symbols, MB", goal{AtMost: 25})
		for _, build := range b.builds {
			file, err := elf.Open(build.program(name))
			if err != nil {
				return err
			}
			defer file.Close()
			bytes := uint64(0)
			for _, s := range file.Sections { // those that are loaded are those that strip leaves
				if s.Flags&elf.SHF_ALLOC != 0 && s.Type != elf.SHT_NOBITS {
					bytes += s.FileSize
				}
			}
			r.Values[build.subject] = []float64{float64(bytes) / 1e6}
		}
		b.Rows = append(b.Rows, r)
	}
	return nil
}
