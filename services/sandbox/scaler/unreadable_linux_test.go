package scaler

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Root may read everything, so the folder is read as another user, which on Linux one
// thread of a process can be.
func TestLoadNamesUnreadableFiles(t *testing.T) {
	dir := folder(t, map[string]string{"job.yaml": scaledJob, "others.yaml": others})
	require.NoError(t, os.Chmod(filepath.Join(dir, "job.yaml"), 0))
	require.NoError(t, os.Chmod(filepath.Join(dir, "others.yaml"), 0o644))
	for parent := dir; parent != os.TempDir() && parent != "/"; parent = filepath.Dir(parent) {
		require.NoError(t, os.Chmod(parent, 0o755))
	}
	read := make(chan error)
	go func() {
		const nobody = 65534
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if os.Getuid() == 0 {
			if err := syscall.Setfsuid(nobody); err != nil {
				read <- err
			}
		}
		_, err := Load(dir)
		read <- err
	}()
	err := <-read
	require.ErrorContains(t, err, "holds 0 ScaledJobs")
	require.ErrorContains(t, err, "job.yaml: permission denied")
}
