package queue_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/queue"
)

func TestCount(t *testing.T) {
	t.Parallel()
	c := contracttest.RabbitMQ(t)
	counter := queue.Counter{Config: c, Name: t.Name()}
	t.Cleanup(counter.Close)
	becomes := func(want queue.Counts) {
		t.Helper()
		require.Eventually(t, func() bool {
			n, err := counter.Count(t.Context())
			return err == nil && n == want
		}, contracttest.Patience, contracttest.Tick)
	}
	becomes(queue.Counts{})
	refuse(t, c, 2)
	becomes(queue.Counts{Dead: 2})
	p := publisher(t, c)
	for i := range 3 {
		require.NoError(t, p.Publish(t.Context(), message(fmt.Sprint(i))))
	}
	becomes(queue.Counts{Ready: 3, Dead: 2})
	_, err := contracttest.Consumer(t, c).Claim(t.Context(), contracttest.Patience)
	require.NoError(t, err)
	becomes(queue.Counts{Ready: 2, Dead: 2})

	// by hand, behind its back
	_, err = contracttest.Channel(t, c).QueueDelete(c.Queue, false, false, false)
	require.NoError(t, err)
	becomes(queue.Counts{Dead: 2})
	counter.Close()
	becomes(queue.Counts{Dead: 2})
}

func TestCountWithoutABroker(t *testing.T) {
	t.Parallel()
	c := queue.Config{Port: "1", VHost: "/", Queue: "q"}
	c.Host = "127.0.0.1"
	counter := queue.Counter{Config: c}
	_, err := counter.Count(t.Context())
	require.Error(t, err)
	ended, end := context.WithCancel(t.Context())
	end()
	counter.Config = contracttest.RabbitMQ(t)
	_, err = counter.Count(ended)
	require.ErrorIs(t, err, context.Canceled)
	_, err = counter.Count(t.Context())
	require.NoError(t, err, "the next call connects again")
	counter.Close()
	counter.Close()
}
