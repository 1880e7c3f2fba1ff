// Package freeport finds TCP ports for servers that must be told theirs.
package freeport

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
)

// Pick returns a port of 127.0.0.1 that nobody listens on. It is taken from
// below the range in which the kernel chooses ports for outgoing connections,
// so that none of those takes it before the server is up.
func Pick() (int, error) {
	const from, to = 20000, 32000
	for range 100 {
		port := from + rand.IntN(to-from)
		if Free(port) {
			return port, nil
		}
	}
	return 0, errors.New("no free port on 127.0.0.1")
}

// Free tells whether a server could listen on the port of 127.0.0.1.
func Free(port int) bool {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
