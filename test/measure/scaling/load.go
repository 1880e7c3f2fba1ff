package main

import (
	"slices"
	"time"
)

// load is what is sent, and how long each message's work takes.
type load struct {
	name       string
	bursts     []burst
	work       time.Duration
	claimDelay time.Duration // a worker needs so long before it claims
}

// burst is that many events at once, so long after the load's start.
type burst struct {
	at     time.Duration
	events int
}

// loads are those of the documentation's tables, and "waves" of the end-to-end tests.
var loads = []load{
	{name: "five", work: 20 * time.Second, bursts: []burst{{0, 5}}},
	{name: "bursts", work: 20 * time.Second, bursts: []burst{{0, 5}, {8 * time.Second, 5}, {16 * time.Second, 5}}},
	{name: "thirty", work: 20 * time.Second, bursts: []burst{{0, 30}}},
	{name: "waves", work: 30 * time.Second, bursts: []burst{{0, 20}}},
	{name: "slow", work: 20 * time.Second, bursts: []burst{{0, 5}}, claimDelay: 12 * time.Second},
	{name: "slow-bursts", work: 20 * time.Second, bursts: []burst{{0, 5}, {8 * time.Second, 5}, {16 * time.Second, 5}}, claimDelay: 12 * time.Second},
	{name: "hundred", work: time.Second, bursts: []burst{{0, 100}}},
	{name: "trickle", work: 20 * time.Second, bursts: every(3*time.Second, 40)},
}

// every sends n events, one at a time.
func every(interval time.Duration, n int) []burst {
	var all []burst
	for i := range n {
		all = append(all, burst{time.Duration(i) * interval, 1})
	}
	return all
}

func (l load) events() int {
	n := 0
	for _, b := range l.bursts {
		n += b.events
	}
	return n
}

// ideal is when all of it would be done with so many places, if a worker began
// the moment that a message came and a place was free.
func (l load) ideal(places int) time.Duration {
	free := make([]time.Duration, places) // when each place is
	for _, b := range l.bursts {
		for range b.events {
			i := slices.Index(free, slices.Min(free))
			free[i] = max(free[i], b.at) + l.claimDelay + l.work
		}
	}
	return slices.Max(free)
}
