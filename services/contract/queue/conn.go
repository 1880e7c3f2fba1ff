package queue

import (
	"net"
	"sync"
	"time"
)

// maxPending bounds what a connection collects: a few messages of the largest size,
// or thousands of small ones.
const maxPending = 512 << 10

// collected is a connection that collects what is written while a write is under
// way, and then sends it in one. amqp091-go writes after each message: under load
// that is a system call, a packet and a wake-up of RabbitMQ's reader each, and here
// one for many. A write that the peer does not take ends the connection: without
// that a publish would block for as long as a broker's alarm lasts, and with it
// every goroutine that waits for the channel.
type collected struct {
	net.Conn

	mu      sync.Mutex
	changed sync.Cond
	pending []byte // what is to be written
	err     error  // why nothing is written any more
}

func collect(c net.Conn) *collected {
	w := &collected{Conn: c}
	w.changed.L = &w.mu
	go w.run()
	return w
}

// Write returns once b is collected. An error is that of an earlier write.
func (c *collected) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && len(c.pending) > maxPending {
		c.changed.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	c.pending = append(c.pending, b...)
	c.changed.Broadcast()
	return len(b), nil
}

func (c *collected) run() {
	var batch []byte
	for {
		c.mu.Lock()
		for c.err == nil && len(c.pending) == 0 {
			c.changed.Wait()
		}
		batch, c.pending = c.pending, batch[:0]
		err := c.err
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
		if err = c.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
			_, err = c.Conn.Write(batch)
		}
		if err != nil {
			_ = c.end(err) // the reader of the connection notices
			return
		}
	}
}

// Close ends the connection. What has not been written yet is lost, as it may be in
// any case: whoever needs to know waits for RabbitMQ's answer.
func (c *collected) Close() error { return c.end(net.ErrClosed) }

func (c *collected) end(err error) error {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	return c.Conn.Close()
}
