package main

import (
	"container/heap"
	"fmt"
	"math"
	"slices"

	"keda-p2/services/sandbox/scaler"
)

// system is what decides how fast messages get their Jobs. Times are in seconds.
type system struct {
	strategy scaler.Strategy
	poll     float64 // between two of KEDA's looks at the queue
	start    float64 // from a Job's creation to its claim, when it starts alone
	starts   float64 // pods a second that the cluster can start, or clear away
	lag      float64 // until KEDA sees that a pod has claimed its message, or has ended
	end      float64 // from the acknowledgement until KEDA sees the Job as finished, when it ends alone
}

// cluster describes what only a measurement can tell.
func (s system) cluster() string {
	return fmt.Sprintf("a claim %s after the Job's creation, %g pods started per second, pods seen with a lag of %s,\na Job finished %s after its work",
		duration(s.start), s.starts, duration(s.lag), duration(s.end))
}

// load is when each message is sent, in order, and how long its work takes.
type load struct{ at, work []float64 }

// result is what became of a load. All times count from the load's beginning.
type result struct {
	waits      []float64 // from sent to claimed, in the order of sending
	jobs       int
	claimed    float64 // the last claim
	done       float64 // the last work's end
	atOnce     int64
	podSeconds float64 // from each Job's creation to its pod's end
}

// kind of an event. When two are at the same time, the lower one is first.
type kind int

const (
	jobStarted kind = iota // and claims
	podReady
	podEnded
	jobFinished
	look
)

type event struct {
	at      float64
	kind    kind
	created float64 // the Job
}

type events []event

func (e events) Len() int      { return len(e) }
func (e events) Swap(i, k int) { e[i], e[k] = e[k], e[i] }
func (e events) Less(i, k int) bool {
	return e[i].at < e[k].at || e[i].at == e[k].at && e[i].kind < e[k].kind
}
func (e *events) Push(x any) { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// simulation is one run. The queue is first in, first out, and no message comes
// back, so the messages that wait are those from next to sent.
type simulation struct {
	system
	load
	result
	next, sent       int
	running, pending int64
	starter          float64 // when the cluster can start or clear away another pod
	events           events
}

// simulate follows a load until all of it is done. KEDA's first look is at phase,
// and the others every poll seconds: it sets its timer before each look. (When one
// takes longer than that, the next follows at once; here it takes no time.)
func simulate(s system, l load, phase float64) result {
	m := &simulation{system: s, load: l}
	m.waits = make([]float64, len(l.at))
	looking := false
	for m.sent < len(l.at) || len(m.events) > 0 {
		if m.sent < len(l.at) && (len(m.events) == 0 || l.at[m.sent] <= m.events[0].at) {
			m.sent++
			if !looking { // looks at an empty queue change nothing
				looking = true
				now := l.at[m.sent-1]
				m.add(phase+max(0, math.Ceil((now-phase)/s.poll))*s.poll, look, 0)
			}
			continue
		}
		e := heap.Pop(&m.events).(event)
		switch e.kind {
		case look:
			m.look(e.at)
			if looking = m.next < m.sent; looking {
				m.add(e.at+s.poll, look, 0)
			}
		case jobStarted:
			m.take(e)
		case podReady:
			m.pending--
		case podEnded:
			// It is not ready any more: its Job is pending again until it is
			// finished, and KEDA starts one less for the messages that wait.
			m.pending++
			m.podSeconds += e.at - e.created
			// what starts pods also clears them away
			m.starter = max(m.starter, e.at) + 1/m.starts
			m.add(m.starter+m.end-min(m.lag, m.end), jobFinished, e.created)
		case jobFinished:
			m.running--
			m.pending--
		}
	}
	return m.result
}

func (m *simulation) add(at float64, k kind, created float64) {
	heap.Push(&m.events, event{at, k, created})
}

// look is one of KEDA's.
func (m *simulation) look(now float64) {
	for range m.strategy.NewJobs(int64(m.sent-m.next), m.running, m.pending) {
		m.jobs++
		m.running++
		m.pending++
		m.starter = max(m.starter, now)
		m.add(m.starter+m.start, jobStarted, now)
		m.starter += 1 / m.starts
	}
	m.atOnce = max(m.atOnce, m.running)
}

// take lets a Job claim the oldest message. There is one: KEDA has started no more
// Jobs than messages wait, as a Job is pending until after its claim.
func (m *simulation) take(job event) {
	i := m.next
	m.next++
	m.waits[i], m.claimed = job.at-m.at[i], job.at
	done := job.at + m.work[i]
	m.done = max(m.done, done)
	ended := done + min(m.lag, m.end)
	m.add(min(job.at+m.lag, ended), podReady, job.created)
	m.add(ended, podEnded, job.created)
}

// deployment follows the same load through a Deployment's pods, which are there
// from the beginning and take one message after the other.
func deployment(replicas int, l load) result {
	r := result{waits: make([]float64, len(l.at)), atOnce: int64(replicas)}
	free := make(events, replicas)
	for i, at := range l.at {
		r.claimed = max(at, free[0].at)
		r.waits[i] = r.claimed - at
		free[0].at = r.claimed + l.work[i]
		r.done = max(r.done, free[0].at)
		heap.Fix(&free, 0)
	}
	return r
}

// quantile is that of test/measure/scaling.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}
