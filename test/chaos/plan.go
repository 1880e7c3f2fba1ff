package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

const (
	// maxAttempts is the default of RABBITMQ_MAX_ATTEMPTS.
	maxAttempts = 5
	// lastFault is the share of the run after which no fault begins.
	lastFault = 0.8
	// pace is the mean time between two events, of all clients together. It is
	// about as fast as two cores process them.
	pace = 60 * time.Millisecond
	// doomed is the share of the Jobs that are to be killed. Some have ended when
	// their moment comes, so that about a third are.
	doomed = 0.38
	// In every so many Jobs there is a wave of them that are all killed while they
	// work: as many as run at a time, as often as a message is delivered. So some
	// messages end as dead letters.
	waveEvery, waveLength = 1000, maxJobs * maxAttempts
)

// What goes wrong. The last five are for one of the proxies: all but down are
// the names of a toxic.
const (
	sigkill          = "SIGKILL" // of a Job
	sigterm          = "SIGTERM"
	rabbitmqRestarts = "RabbitMQ"
	mongodbRestarts  = "MongoDB"
	appRestarts      = "complex-app"

	down      = "down"       // every connection is cut, none is taken
	reset     = "reset_peer" // a connection is cut as soon as it is used
	limitData = "limit_data" // a connection is cut after some bytes
	stall     = "stall"      // the bytes stop, and go on at the end
	timeout   = "timeout"    // the bytes stop, and at the end the connection is cut
)

var (
	cuts   = []string{down, reset, limitData}
	stalls = []string{stall, timeout}
)

// plan is all that chance decides, and follows from the seed alone.
type plan struct {
	seed   uint64
	wave   int // the Job with which the first one begins
	events []event
	faults [][]fault // each list in its order, beside the others
}

// event is one that a client sends, after a pause.
type event struct {
	ID, Name, Content string
	pause             time.Duration
}

// fault is something that goes wrong at a share of the run, from 0 to 1.
type fault struct {
	at           float64
	kind         string
	lasts        time.Duration
	crash        bool   // of a restart: killed, and not told to stop
	link, stream string // of the network: the proxy, and the direction
	bytes        int    // for limitData
}

// fate is what is in store for one Job.
type fate struct {
	work           time.Duration
	killed, gently bool    // gently is SIGTERM in place of SIGKILL
	wave           bool    // killed while it works
	moment         float64 // of being killed: a share of a Job's usual life, or of its work
}

// Streams of the random generator, so that one more event changes no fault.
const (
	ofEvents = iota
	ofFaults
	ofJobs // and upwards
)

func newPlan(seed uint64, events, clients, restarts int) plan {
	p := plan{seed: seed}
	r := rand.New(rand.NewPCG(seed, ofEvents))
	alphabets := []string{"abc XYZ 0123 ", "жизнь ", "日本語", `"<&>'\/`, "\t\n", "🙂é\u0301"}
	for i := range events {
		// most are short: FerretDB reads all of them at each command
		tail := strings.Repeat(alphabets[r.IntN(len(alphabets))], r.IntN(5))
		if r.IntN(100) == 0 {
			tail = strings.Repeat(tail, 100)
		}
		p.events = append(p.events, event{
			ID: fmt.Sprintf("chaos-%d-%d", seed, i), Name: fmt.Sprintf("record%d", i), Content: fmt.Sprintf("content%d %s", i, tail),
			pause: time.Duration(r.Float64() * 2 * float64(clients) * float64(pace)),
		})
	}
	r = rand.New(rand.NewPCG(seed, ofFaults))
	p.wave = 20 + r.IntN(events/4)
	network := func(int) fault { return networkFault(r) }
	p.faults = [][]fault{
		spread(r, restarts, func(i int) fault {
			return fault{kind: rabbitmqRestarts, crash: i == 0 || r.IntN(2) == 0, lasts: between(r, 0, 2*time.Second)}
		}),
		spread(r, restarts, func(int) fault { return fault{kind: mongodbRestarts, lasts: between(r, 0, 4*time.Second)} }),
		spread(r, min(restarts, 2), func(i int) fault { return fault{kind: appRestarts, crash: i == 1} }),
		// One that must not be missing: RabbitMQ stores what its publisher never
		// hears of, for longer than complex-app waits for a confirm.
		{{at: 0.1, kind: timeout, link: appToRabbitMQ, stream: "downstream", lasts: 7 * time.Second}},
		spread(r, max(2, events/160), network),
		spread(r, max(2, events/160), network),
	}
	return p
}

func networkFault(r *rand.Rand) fault {
	f := fault{
		kind:   []string{down, reset, limitData, stall, stall, timeout}[r.IntN(6)],
		link:   links[r.IntN(len(links))],
		stream: []string{"upstream", "downstream"}[r.IntN(2)],
		bytes:  r.IntN(3000),
		lasts:  between(r, 0, 1500*time.Millisecond),
	}
	if f.kind == stall || f.kind == timeout {
		f.lasts = between(r, time.Second/2, 6*time.Second)
		if r.IntN(6) == 0 { // RabbitMQ misses its heartbeats and takes the connection for dead
			f.lasts += 10 * time.Second
		}
	}
	return f
}

// spread makes n faults, each somewhere in its own part of the run.
func spread(r *rand.Rand, n int, draw func(int) fault) []fault {
	var faults []fault
	for i := range n {
		f := draw(i)
		f.at = lastFault * (float64(i) + r.Float64()) / float64(n)
		faults = append(faults, f)
	}
	return faults
}

// job returns the fate of the Job that is started as the n-th.
func (p plan) job(n int) fate {
	r := rand.New(rand.NewPCG(p.seed, ofJobs+uint64(n)))
	wave := n >= p.wave && (n-p.wave)%waveEvery < waveLength
	return fate{
		work: between(r, 50*time.Millisecond, 200*time.Millisecond), wave: wave,
		killed: r.Float64() < doomed || wave, gently: r.IntN(4) == 0, moment: r.Float64(),
	}
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1)).Truncate(time.Millisecond)
}
