package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

const idleConnections = 10_000

// resident returns the bytes that a process has in memory: now for VmRSS, at most
// so far for VmHWM.
func resident(pid int, field string) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("there is no %s in /proc/%d/status", field, pid)
}

func mib(bytes int) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func benchLimits(ctx context.Context, b *bench) error {
	app, err := b.startApp(ctx, nil)
	if err != nil {
		return err
	}
	defer app.stop()
	if err := b.purge(ctx); err != nil {
		return err
	}
	job, err := b.residentJob(ctx)
	if err != nil {
		return err
	}
	pid := app.process.Pid()
	started, err := resident(pid, "VmRSS")
	if err != nil {
		return err
	}
	rates := func() (all []float64, err error) {
		for range b.rounds {
			l, err := b.wrk(ctx, app.url, 64, turn)
			if err != nil {
				return nil, err
			}
			all = append(all, l.rate())
		}
		return all, b.purge(ctx)
	}
	without, err := rates()
	if err != nil {
		return err
	}
	loaded, err := resident(pid, "VmHWM")
	if err != nil {
		return err
	}
	before, err := resident(pid, "VmRSS")
	if err != nil {
		return err
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	dialer := net.Dialer{}
	for range idleConnections {
		c, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(app.url, "http://"))
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(open)+1, err)
		}
		open = append(open, c)
		// one request, so that the service has made all that a connection needs
		if _, err := fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 4<<10)); err != nil {
			return fmt.Errorf("connection %d: %w", len(open), err)
		}
	}
	idle, err := resident(pid, "VmRSS")
	if err != nil {
		return err
	}
	b.say("%d connections open", len(open))
	beside, err := rates()
	if err != nil {
		return err
	}
	b.print("\n| in memory | | |")
	b.print("| --- | ---: | --- |")
	b.print("| processor-job at work, its peak | %s | %s |", mib(job), verdict(job <= residentGoal))
	b.print("| complex-app after its start | %s | |", mib(started))
	b.print("| its peak with 64 clients that send | %s | |", mib(loaded))
	b.print("| %d idle connections more | %s, %d bytes each | |", idleConnections, mib(idle-before), (idle-before)/idleConnections)
	b.print("| POST /send without them and beside them, 64 clients | %.0f and %.0f a second: %s | |", median(without), median(beside), spread(ratios(beside, without)))
	return nil
}
