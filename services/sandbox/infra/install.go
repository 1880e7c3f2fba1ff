package infra

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// install installs Debian's rabbitmq-server, and starts no node of it, now or
// when the machine starts.
func install(ctx context.Context, say func(string)) error {
	// One sandbox installs at a time. The lock is a folder that is always there,
	// so it leaves no file behind.
	lock, err := os.Open("/var/lib/dpkg")
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(debianServer); err == nil {
		return nil // another one has, meanwhile
	}
	say("RabbitMQ is not installed. Installing Debian's package rabbitmq-server, once; this takes a minute.")

	// Debian's packages ask this script before they start a service. One that is
	// there already stays as it is.
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err == nil {
		defer os.Remove(policy)
		_, err = f.WriteString("#!/bin/sh\nexit 101\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}

	packages := []string{"install", "--yes", "--no-install-recommends", "rabbitmq-server"}
	if err := apt(ctx, packages...); err != nil {
		// missing or old package lists are the usual reason
		if err := errors.Join(apt(ctx, "update"), apt(ctx, packages...)); err != nil {
			return err
		}
	}
	_ = exec.CommandContext(ctx, "systemctl", "--quiet", "disable", "rabbitmq-server").Run() // where systemd is
	_, err = os.Stat(debianServer)
	return err
}

func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	// apt-get gets its one interrupt from here and then the time that it needs:
	// it leaves no package half installed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	text := strings.TrimSpace(string(out))
	return text[strings.LastIndex(text, "\n")+1:]
}
