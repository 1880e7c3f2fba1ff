// Package freeport finds TCP ports of 127.0.0.1 for servers that must be told
// theirs.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
)

// Ports are taken from below the range in which the kernel chooses those of
// outgoing connections.
const from, to = 20000, 32000

// Reserve returns a port that nobody has, and keeps it from everybody else who
// asks this package, in this process or another, until release is called. A
// server may listen on it meanwhile, and again after a restart, if it sets
// SO_REUSEADDR as nearly all do: Linux lets it beside a socket that is bound,
// has that option too and does not listen.
func Reserve() (port int, release func(), err error) {
	syscall.ForkLock.RLock() // no child may be started before it cannot inherit the socket
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, nil, fmt.Errorf("find a free port: %w", err)
	}
	for range 100 {
		port = from + rand.IntN(to-from)
		// without SO_REUSEADDR yet, so that any other socket is in the way
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if err == nil {
			err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		_ = syscall.Close(fd)
		return 0, nil, fmt.Errorf("find a free port: %w", err)
	}
	return port, func() { _ = syscall.Close(fd) }, nil
}

// Pick returns a port that nobody has at this moment.
func Pick() (int, error) {
	port, release, err := Reserve()
	if err != nil {
		return 0, err
	}
	release()
	return port, nil
}

// Free tells whether a server could listen on the port.
func Free(port int) bool {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return false
	}
	return l.Close() == nil
}
