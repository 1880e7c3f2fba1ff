package main

import (
	"log/slog"
	"net/http"
	"time"
)

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	// writeTimeout cuts off a client that does not read its answers. The API extends it
	// for answers that take longer.
	writeTimeout = 10 * time.Second
	// maxHeaderBytes leaves room for the longest query, of 64 KiB, and little more: by
	// default each of many connections could fill 1 MB.
	maxHeaderBytes = 72 << 10
)

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
