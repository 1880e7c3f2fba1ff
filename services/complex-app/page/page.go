// Package page is the page that complex-app serves, with everything that it
// loads: there is nothing from another host, and no build step. The chart library
// is built by `make chart`, whose result is in the repository.
package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

//go:embed assets
var assets embed.FS

// types are the media types by the end of a file's name.
var types = map[string]string{
	".css":  "text/css; charset=utf-8",
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

// File is one of the page's, compressed.
type File struct {
	Type string // media type
	ETag string
	Gzip []byte
}

// Files returns all files by name.
func Files() (map[string]File, error) {
	entries, err := assets.ReadDir("assets")
	if err != nil {
		return nil, err
	}
	files := map[string]File{}
	for _, entry := range entries {
		body, err := assets.ReadFile("assets/" + entry.Name())
		if err != nil {
			return nil, err
		}
		name, compressed := strings.CutSuffix(entry.Name(), ".gz")
		if !compressed {
			if body, err = compress(body); err != nil {
				return nil, err
			}
		}
		f := File{Type: types[path.Ext(name)], Gzip: body}
		if f.Type == "" {
			return nil, fmt.Errorf("page: %s has no media type", name)
		}
		sum := sha256.Sum256(body)
		f.ETag = `"` + hex.EncodeToString(sum[:8]) + `"`
		files[name] = f
	}
	return files, nil
}

func compress(body []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(body)
	err = errors.Join(err, w.Close()) // which writes the end
	return b.Bytes(), err
}

// Plain writes the file as it was before it was compressed.
func (f File) Plain(w io.Writer) error {
	r, err := gzip.NewReader(bytes.NewReader(f.Gzip))
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return err
}
