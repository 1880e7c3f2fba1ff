package process_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/sandbox/process"
)

// TestMain lets the test binary play a sandbox, which starts a child, prints its
// number and is then killed.
func TestMain(m *testing.M) {
	if os.Getenv("PLAY") != "sandbox" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("sleep", "60")
	if _, err := process.Start(cmd, ""); err != nil {
		panic(err)
	}
	fmt.Println(cmd.Process.Pid)
	select {}
}

func start(t *testing.T, script string) *process.Process {
	t.Helper()
	p, err := process.Start(exec.Command("sh", "-c", script), filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	return p
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 10*time.Second, 10*time.Millisecond)
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestProcess(t *testing.T) {
	t.Parallel()

	t.Run("success", func(t *testing.T) {
		t.Parallel()
		p := start(t, "echo one; echo two; echo three >&2")
		<-p.Done
		require.NoError(t, p.Err())
		require.Equal(t, "two\nthree", p.Tail(2))
	})

	t.Run("failure", func(t *testing.T) {
		t.Parallel()
		p := start(t, "exit 3")
		<-p.Done
		require.EqualError(t, p.Err(), "exit status 3")
		require.Empty(t, p.Tail(1))
		p.Stop(time.Minute) // does nothing, and at once
	})

	t.Run("no such program", func(t *testing.T) {
		t.Parallel()
		_, err := process.Start(exec.Command("/does/not/exist"), "")
		require.ErrorIs(t, err, os.ErrNotExist)
	})

	t.Run("stop", func(t *testing.T) {
		t.Parallel()
		p := start(t, "trap 'echo stopping; exit 1' TERM; echo ready; while :; do sleep 0.01; done")
		eventually(t, func() bool { return p.Tail(1) == "ready" })
		p.Stop(time.Minute)
		require.Equal(t, "stopping", p.Tail(1))
	})

	t.Run("stop with a child that will not", func(t *testing.T) {
		t.Parallel()
		p := start(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
		eventually(t, func() bool { return p.Tail(1) == "ready" })
		p.Stop(50 * time.Millisecond)
		require.EqualError(t, p.Err(), "signal: killed")
	})

	t.Run("what the child leaves behind ends with it", func(t *testing.T) {
		t.Parallel()
		p := start(t, "sleep 60 >/dev/null & echo $!")
		<-p.Done
		pid, err := strconv.Atoi(p.Tail(1))
		require.NoError(t, err)
		eventually(t, func() bool { return gone(pid) })
	})

	t.Run("killing the parent ends the child", func(t *testing.T) {
		t.Parallel()
		parent := exec.Command(os.Args[0])
		parent.Env = append(os.Environ(), "PLAY=sandbox")
		out, err := parent.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, parent.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		require.NoError(t, err)
		require.False(t, gone(pid))
		require.NoError(t, parent.Process.Kill())
		require.Error(t, parent.Wait())
		eventually(t, func() bool { return gone(pid) })
	})
}
