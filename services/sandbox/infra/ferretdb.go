package infra

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/FerretDB/FerretDB/ferretdb"
)

// FerretDB is an embedded server for MongoDB's protocol. It knows no logins.
type FerretDB struct {
	Host, Port string

	stop func()
}

// StartFerretDB starts a server that keeps its data and its log in dir. The
// caller must Close it. It is not safe for concurrent use: FerretDB's own start
// writes to a global variable.
func StartFerretDB(dir string) (*FerretDB, error) {
	log, err := os.Create(filepath.Join(dir, "ferretdb.log"))
	if err != nil {
		return nil, fmt.Errorf("FerretDB: %w", err)
	}
	folder := url.URL{Scheme: "file", OmitHost: true, Path: dir + "/"} // any folder name
	db, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: "127.0.0.1:0"},
		Handler:   "sqlite",
		SQLiteURL: folder.String(),
		Logger:    slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, fmt.Errorf("FerretDB: %w", err)
	}
	address, err := url.Parse(db.MongoDBURI())
	if err != nil {
		return nil, fmt.Errorf("FerretDB: %w", err)
	}
	front, err := listenOneAtATime(address.Host)
	if err != nil {
		return nil, fmt.Errorf("FerretDB: %w", err)
	}
	host, port, err := net.SplitHostPort(front.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("FerretDB: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer log.Close()
		_ = db.Run(ctx) // always nil
	}()
	return &FerretDB{Host: host, Port: port, stop: func() { front.Close(); cancel(); <-done }}, nil
}

// Close ends the server. Its folder may be removed then.
func (f *FerretDB) Close() { f.stop() }
