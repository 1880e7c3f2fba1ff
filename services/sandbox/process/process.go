// Package process runs child processes that do not outlive this one, even when
// this one is killed.
package process

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Process is a child that was started.
type Process struct {
	// Done is closed when the child and its process group are gone.
	Done <-chan struct{}

	cmd   *exec.Cmd
	group bool
	log   string
	err   error
}

// Start starts cmd. With a log file, the child's output is appended to it;
// otherwise cmd says where it goes. Unless cmd has SysProcAttr, the child gets a
// process group of its own: a Ctrl-C in the terminal does not reach it, and
// whatever it starts itself ends with it.
func Start(cmd *exec.Cmd, log string) (*Process, error) {
	if log != "" {
		f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		defer f.Close() // the child has its own copy
		cmd.Stdout, cmd.Stderr = f, f
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	dieWithParent(cmd.SysProcAttr)

	started, done := make(chan error), make(chan struct{})
	p := &Process{Done: done, cmd: cmd, group: cmd.SysProcAttr.Setpgid, log: log}
	go func() {
		// Linux takes the thread that started the child for its parent, and Go
		// may end a thread: this one is kept until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		if p.group {
			p.send(syscall.SIGKILL) // what the child has left behind
		}
		close(done)
	}()
	return p, <-started
}

// Err tells how the child ended: nil is exit code 0. Valid after Done.
func (p *Process) Err() error { return p.err }

// Pid is the child's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stop asks the child to end, kills it after the grace period, and returns when
// it is gone.
func (p *Process) Stop(grace time.Duration) {
	p.send(syscall.SIGTERM)
	select {
	case <-p.Done:
	case <-time.After(grace):
		p.Kill()
	}
}

// Kill ends the child at once, and returns when it is gone.
func (p *Process) Kill() {
	p.send(syscall.SIGKILL)
	<-p.Done
}

func (p *Process) send(sig syscall.Signal) {
	select {
	case <-p.Done: // by now its number may be another's
		return
	default:
	}
	// the one error is that it has just ended
	if p.group {
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
	} else {
		_ = p.cmd.Process.Signal(sig)
	}
}

// Tail returns the last n lines of the log file.
func (p *Process) Tail(n int) string {
	content, _ := os.ReadFile(p.log) // no file is no lines
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Env returns variables in the form of exec.Cmd.
func Env(vars map[string]string) []string {
	env := make([]string, 0, len(vars))
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	return env
}
