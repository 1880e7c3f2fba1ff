package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"keda-p2/services/sandbox/freeport"
	"keda-p2/services/sandbox/process"
	"keda-p2/test/memory"
)

const (
	startTimeout = time.Minute
	startPoll    = 10 * time.Millisecond
	stopTimeout  = 10 * time.Second
)

// output runs a program to its end and returns what it has printed. The variables
// are added to those of this process.
func output(ctx context.Context, program string, variables []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), variables...)
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s%s", err, out, failed.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(program), err)
	}
	return out, nil
}

// raw runs the raw client and returns the line that it prints.
func (b *bench) raw(ctx context.Context, variables []string, args ...string) (string, error) {
	out, err := output(ctx, b.builds[0].program("raw"), variables, args...)
	return string(bytes.TrimSpace(out)), err
}

// app is a complex-app that runs.
type app struct {
	subject string
	url     string
	process *process.Process
}

func (a app) stop() { a.process.Stop(stopTimeout) }

// startApps starts complex-app of each build. The caller must call stop, also
// after an error.
func (b *bench) startApps(ctx context.Context, variables ...string) (apps []app, stop func(), err error) {
	stop = func() {
		for _, a := range apps {
			a.stop()
		}
	}
	for _, build := range b.builds {
		a, err := b.startApp(ctx, build, variables...)
		if err != nil {
			return apps, stop, err
		}
		apps = append(apps, a)
	}
	return apps, stop, nil
}

// startApp returns when complex-app is ready.
func (b *bench) startApp(ctx context.Context, from build, variables ...string) (app, error) {
	port, release, err := freeport.Reserve()
	if err != nil {
		return app{}, err
	}
	release()
	address := "127.0.0.1:" + strconv.Itoa(port)
	cmd := exec.Command(from.program("complex-app"))
	cmd.Env = append(append(os.Environ(), "HTTP_ADDR="+address, "ADMIN_ADDR=127.0.0.1:0"), variables...)
	p, err := process.Start(cmd, filepath.Join(b.dir, from.subject+".log"))
	if err != nil {
		return app{}, err
	}
	a := app{from.subject, "http://" + address, p}
	if err := a.waitReady(ctx); err != nil {
		a.stop()
		return app{}, fmt.Errorf("start complex-app (%s): %w\n%s", from.subject, err, p.Tail(5))
	}
	return a, nil
}

func (a app) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if response, err := http.Get(a.url + "/readyz"); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-time.After(startPoll):
		case <-a.process.Done:
			return errors.New("it has ended")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resident returns how much memory a process has, in MiB: now for VmRSS, at its
// peak for VmHWM.
func resident(pid int, field string) (float64, error) {
	bytes, err := memory.Of(pid, field)
	return float64(bytes) / (1 << 20), err
}
