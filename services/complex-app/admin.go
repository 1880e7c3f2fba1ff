package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
)

// startAdmin serves the metrics and the API's health on an address of their own,
// which no Service names: they are the cluster's affair. It answers as long as the
// process lives, also while requests in flight end.
func startAdmin(addr string, metrics, api http.Handler, log *slog.Logger) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("ADMIN_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", api)
	mux.Handle("GET /readyz", api)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go server.Serve(listener) //nolint:errcheck // it ends with ErrServerClosed
	log.Info("serving metrics", "address", listener.Addr().String())
	return func() { _ = server.Close() }, nil
}
