package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"

	"keda-p2/services/sandbox/process"
)

// commandGrace is how long exec's command may take to end after SIGTERM.
const commandGrace = 10 * time.Second

// commandError is how exec's command has failed. It has said itself why.
type commandError struct{ error }

// execute runs a command beside the servers.
func execute(ctx context.Context, b *sandbox) error {
	if len(b.command) == 0 {
		return errors.New("exec: give a command after --")
	}
	cmd := exec.Command(b.command[0], b.command[1:]...)
	if cmd.Err != nil { // such as no such program
		return fmt.Errorf("exec: %w", cmd.Err)
	}
	b.out = os.Stderr // standard output is the command's
	if err := b.startServers(ctx, "sandbox", rand.Text()); err != nil {
		return err
	}
	env := maps.Clone(b.environ)
	maps.DeleteFunc(env, func(k, _ string) bool { return ofServer(k) })
	maps.Copy(env, b.env)
	cmd.Env = process.Env(env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if isatty.IsTerminal(os.Stdin.Fd()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{} // a process group of its own could not read the terminal
	}
	p, err := process.Start(cmd, "")
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	select {
	case <-p.Done:
	case <-ctx.Done():
		p.Stop(commandGrace)
	}
	if p.Err() != nil {
		return commandError{p.Err()}
	}
	return nil
}

// code is the exit code that a shell would report.
func (e commandError) code() int {
	exit, ok := e.error.(*exec.ExitError)
	if !ok {
		return 1
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}
