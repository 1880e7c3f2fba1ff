package queue

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// counted counts the writes to a connection.
type counted struct {
	net.Conn
	writes int
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes++
	return c.Conn.Write(b)
}

func TestWritesAreCollected(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe() // takes a write only when the other side reads
	inner := &counted{Conn: ours}
	c := collect(inner)
	var want bytes.Buffer
	for i := range 1000 {
		n, err := fmt.Fprintln(io.MultiWriter(c, &want), "message", i)
		require.NoError(t, err)
		require.Positive(t, n)
	}
	got := make([]byte, want.Len())
	_, err := io.ReadFull(theirs, got)
	require.NoError(t, err)
	require.Equal(t, want.String(), string(got))
	require.LessOrEqual(t, inner.writes, 2, "the first one, and all that came during it")
	require.NoError(t, c.Close())
	_, err = c.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
}

// A peer that reads nothing holds up its writers, and not for ever.
func TestAPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	c := collect(ours)
	var writers sync.WaitGroup
	var mu sync.Mutex
	var written int
	var problems []error
	for range 16 {
		writers.Go(func() {
			for {
				n, err := c.Write(make([]byte, 64<<10))
				mu.Lock()
				written += n
				if err != nil {
					problems = append(problems, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	writers.Wait()
	require.Len(t, problems, 16)
	for _, err := range problems {
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	require.LessOrEqual(t, written, 2*maxPending+2*(64<<10), "memory is bounded")
	_, err := ours.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.ErrClosedPipe, "the reader learns of it")
}
