package freeport_test

import (
	"net"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/sandbox/freeport"
)

// bind does what Reserve does first, on a given port.
func bind(t *testing.T, port int) error {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	return syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

func TestReserve(t *testing.T) {
	t.Parallel()
	port, release, err := freeport.Reserve()
	require.NoError(t, err)
	require.ErrorIs(t, bind(t, port), syscall.EADDRINUSE, "it is reserved")

	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for range 2 { // a server that restarts
		require.True(t, freeport.Free(port))
		l, err := net.Listen("tcp", address)
		require.NoError(t, err)
		require.False(t, freeport.Free(port))
		require.NoError(t, l.Close())
	}
	require.ErrorIs(t, bind(t, port), syscall.EADDRINUSE, "it still is")
	release()
	require.NoError(t, bind(t, port))
}

func TestReserveNeverTwice(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 500 {
		port, release, err := freeport.Reserve()
		require.NoError(t, err)
		defer release()
		require.False(t, seen[port])
		seen[port] = true
	}
}
