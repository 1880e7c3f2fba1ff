package main

import (
	"maps"
	"slices"
	"time"
)

// load is what is sent, and how long each message's work takes.
type load struct {
	bursts []burst
	work   time.Duration
}

// burst is that many events at once, so long after the load's start.
type burst struct {
	at     time.Duration
	events int
}

// loads are those of the documentation's tables.
var loads = map[string]load{
	"five":    {work: 20 * time.Second, bursts: []burst{{0, 5}}},
	"bursts":  {work: 20 * time.Second, bursts: []burst{{0, 5}, {8 * time.Second, 5}, {16 * time.Second, 5}}},
	"thirty":  {work: 20 * time.Second, bursts: []burst{{0, 30}}},
	"trickle": {work: 20 * time.Second, bursts: every(3*time.Second, 40)},
	"hundred": {work: time.Second, bursts: []burst{{0, 100}}},
}

func loadNames() []string { return slices.Sorted(maps.Keys(loads)) }

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
