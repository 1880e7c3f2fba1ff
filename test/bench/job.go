package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	jobGoal      = 1.10
	jobsARound   = 20
	residentGoal = 24 << 20
)

// steps are a Job's, in seconds from the start of its process.
type steps struct{ claimed, stored, exited float64 }

func benchJob(ctx context.Context, b *bench) error {
	app, err := b.startApp(ctx, nil) // declares the queue
	if err != nil {
		return err
	}
	defer app.stop()
	subjects := []struct {
		name   string
		run    func(context.Context) (steps, error)
		result [3][]float64 // claimed, stored, exited: a median of each round
	}{
		{name: "minimal", run: func(ctx context.Context) (steps, error) { return b.runMinimal(ctx) }},
		{name: "minimal, two writes", run: func(ctx context.Context) (steps, error) { return b.runMinimal(ctx, "-done") }},
		{name: "processor-job", run: b.runJob},
	}
	for round := range b.rounds {
		if err := b.purge(ctx); err != nil {
			return err
		}
		if err := b.fill(ctx, len(subjects)*jobsARound); err != nil {
			return err
		}
		measured := make([][]steps, len(subjects))
		for i := range jobsARound {
			for t := range subjects {
				who := (i + t) % len(subjects)
				if err := b.forget(ctx); err != nil {
					return err
				}
				s, err := subjects[who].run(ctx)
				if err != nil {
					return err
				}
				measured[who] = append(measured[who], s)
			}
		}
		for who := range subjects {
			r := &subjects[who].result
			for i, of := range []func(steps) float64{
				func(s steps) float64 { return s.claimed }, func(s steps) float64 { return s.stored }, func(s steps) float64 { return s.exited },
			} {
				r[i] = append(r[i], 1000*medianOf(measured[who], of))
			}
			b.say("round %d of %d: %s: exit after %.1f ms", round+1, b.rounds, subjects[who].name, last(r[2]))
		}
	}
	b.print("\n| from exec to | minimal, ms | with two writes, ms | processor-job, ms | of minimal | of that with two writes | |")
	b.print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
	minimal, two, ours := subjects[0].result, subjects[1].result, subjects[2].result
	for i, name := range []string{"claimed", "stored", "exit"} {
		of := ratios(ours[i], minimal[i])
		b.print("| %s | %.1f | %.1f | %.1f | %s | %s | %s |", name, median(minimal[i]), median(two[i]), median(ours[i]),
			spread(of), spread(ratios(ours[i], two[i])), atMost(of, jobGoal))
	}
	return nil
}

func medianOf(all []steps, of func(steps) float64) float64 {
	var values []float64
	for _, s := range all {
		values = append(values, of(s))
	}
	return median(values)
}

// fill puts n messages into the queue.
func (b *bench) fill(ctx context.Context, n int) error {
	conn, ch, err := b.channel(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := ch.Confirm(false); err != nil {
		return err
	}
	var confirms []*amqp.DeferredConfirmation
	for i := range n {
		c, err := ch.PublishWithDeferredConfirm("", b.RabbitMQ.Queue, true, false, amqp.Publishing{
			ContentType: "application/json", DeliveryMode: amqp.Persistent, Timestamp: time.Now(),
			MessageId: fmt.Sprintf("%d-%d", time.Now().UnixNano(), i), Body: []byte(`{"name":"record1","content":"content1"}`),
		})
		if err != nil {
			return err
		}
		confirms = append(confirms, c)
	}
	for _, c := range confirms {
		if ok, err := c.WaitContext(ctx); err != nil || !ok {
			return fmt.Errorf("a message was not confirmed: %w", err)
		}
	}
	return nil
}

func (b *bench) jobEnv(work string) []string {
	return b.env(map[string]string{"PROCESSING_TIME": work, "PROBE_ADDR": "127.0.0.1:0", "LOG_FORMAT": "json", "POD_NAME": "bench"})
}

// runJob runs processor-job for one message. Its log has the times.
func (b *bench) runJob(ctx context.Context) (steps, error) {
	began := time.Now()
	out, err := output(ctx, b.jobEnv("0s"), b.program("processor-job"))
	ended := time.Now()
	if err != nil {
		return steps{}, fmt.Errorf("%w\n%s", err, out)
	}
	s := steps{exited: ended.Sub(began).Seconds()}
	for line := range bytes.Lines(out) {
		var l struct {
			Time time.Time
			Msg  string
		}
		if err := json.Unmarshal(line, &l); err != nil {
			return s, err
		}
		switch {
		case strings.HasPrefix(l.Msg, "claimed"):
			s.claimed = l.Time.Sub(began).Seconds()
		case strings.HasPrefix(l.Msg, "stored"):
			s.stored = l.Time.Sub(began).Seconds()
		}
	}
	if s.claimed == 0 || s.stored == 0 {
		return s, fmt.Errorf("processor-job had no message:\n%s", out)
	}
	return s, nil
}

func (b *bench) runMinimal(ctx context.Context, flags ...string) (steps, error) {
	began := time.Now()
	out, err := output(ctx, b.env(nil), b.program("raw"), append(flags, "work")...)
	ended := time.Now()
	if err != nil {
		return steps{}, err
	}
	s := steps{exited: ended.Sub(began).Seconds()}
	fields := strings.Fields(string(out))
	if len(fields) != 2 {
		return s, fmt.Errorf("raw work printed %q", out)
	}
	for i, into := range []*float64{&s.claimed, &s.stored} {
		at, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return s, err
		}
		*into = time.Unix(0, at).Sub(began).Seconds()
	}
	return s, nil
}

// residentJob returns the bytes that processor-job has in memory at work.
func (b *bench) residentJob(ctx context.Context) (int, error) {
	if err := b.fill(ctx, 1); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.program("processor-job"))
	cmd.Env = b.jobEnv("1h")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	var seen []string
	for lines.Scan() {
		seen = append(seen, lines.Text())
		if strings.Contains(lines.Text(), "stored") {
			return resident(cmd.Process.Pid, "VmHWM")
		}
	}
	return 0, fmt.Errorf("processor-job stored nothing: %s", strings.Join(slices.Clip(seen), "\n"))
}
