package main

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// probe answers the pod's readiness probe. KEDA counts a Job as pending until
// its pod is ready, and takes one waiting message off for each pending Job. A
// pod that is ready exactly from its claim on is therefore never counted beside
// its own message, and never forgotten while its message still waits.
type probe struct{ ready atomic.Bool }

// start serves the probe until the process ends.
func (p *probe) start(addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("PROBE_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !p.ready.Load() {
			http.Error(w, "no message claimed yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "working on a message")
	})
	server := http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go server.Serve(listener) //nolint:errcheck // it does not end
	return nil
}

func (p *probe) setReady() { p.ready.Store(true) }
