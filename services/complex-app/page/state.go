package page

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"keda-p2/services/contract"
	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// What is kept, at most.
const (
	window     = 1000 // records
	maxDead    = 200  // dead letters
	maxSamples = 2000 // changes of the queue's depth
	maxRuns    = 10   // attempts of one message
	maxBytes   = 300  // of a name, a content, an error, a body, a reason
	maxAnswers = 8    // on their way at the same time, and kept for others
	backlog    = 1000 // requests that wait for their turn

	// tooOld is the age from which on a poll says nothing any more: the server is down.
	tooOld = 5 * interval
	// overlap is how far back the polls of the records go, for as long after the last
	// change: one with an earlier time may become visible after it.
	overlap = 2 * time.Second
	// countInterval is how often the records are counted although none has changed.
	countInterval = 10 * time.Second
	// listInterval is how often the dead letters are listed although their number is the
	// same, and how long after a page's last request somebody seems to watch.
	listInterval = 30 * time.Second
	// reuse is how long the pages that ask the same get the same answer, which is
	// encoded once however many they are.
	reuse = interval / 4
	// backlogTimeout bounds the wait for one's turn.
	backlogTimeout = 5 * interval
)

// states are those of a record, in the order in which they are forgotten.
var states = []records.Status{records.Done, records.Failed, records.Retrying, records.Processing}

// Status is the answer to GET /status. What is not known is null.
type Status struct {
	Time     time.Time `json:"time"`
	RabbitMQ string    `json:"rabbitMQ"` // up or down
	MongoDB  string    `json:"mongoDB"`  // up or down
	Ready    *int      `json:"ready"`    // messages that wait for a Job
	InWork   *int      `json:"inWork"`   // messages that a Job works on
	Dead     *int      `json:"dead"`     // dead letters
	Records  *int64    `json:"records"`  // stored ones
	Jobs     *int      `json:"jobs"`     // Jobs at work
}

// changes are what a page gets.
type changes struct {
	Cursor  string             `json:"cursor"`           // asks for what comes after this
	Whole   bool               `json:"whole,omitempty"`  // forget what was there before
	Status  *Status            `json:"status,omitempty"` // missing until both servers were looked at
	Depth   []sample           `json:"depth,omitempty"`
	Records []record           `json:"records,omitempty"`
	Dead    []queue.DeadLetter `json:"dead"` // all of them, or null when they are the same
}

// sample is the number of waiting messages from a time on; null is not known.
type sample struct {
	At    time.Time `json:"at"`
	Ready *int      `json:"ready"`
	seq   uint64
}

// record is one with its runs, and no more of its texts than is shown.
type record struct {
	records.Record
	Runs      []records.Run `json:"runs,omitempty"`
	ChangedAt time.Time     `json:"changedAt"`
	seq       uint64
}

// state is what the polls have found. What changes gets the next sequence number. A
// page asks with the last number that it has seen, as a cursor, and gets what has a
// higher one. Two complex-apps number differently: a cursor names the one that made it.
type state struct {
	name string // of this state, in its cursors

	mu       sync.Mutex // guards everything below
	seq      uint64
	wholeSeq uint64 // a page that has seen less than this gets everything

	queueAt, recordsAt time.Time // of the last polls
	queueUp, recordsUp bool

	ready, dead *int // nil when not known
	lastDead    int  // as counted by the last poll
	depth       []sample
	letters     []queue.DeadLetter
	lettersSeq  uint64
	lettersAt   time.Time
	askedAt     time.Time // when somebody last wanted to know anything

	records   map[string]record
	loaded    bool      // records began with all that there were
	changedAt time.Time // of the last change, by MongoDB's clock
	newAt     time.Time // when that change was seen, by ours
	stored    *int64    // nil when not known
	storedAt  time.Time // when the records were counted

	answers   map[uint64][]byte // encoded changes, by the number that they come after
	answersAt time.Time
}

func newState() *state {
	// Records of an earlier version have no time of change: there are none before 1970.
	return &state{name: rand.Text(), letters: []queue.DeadLetter{}, records: map[string]record{}, changedAt: time.UnixMilli(0)}
}

// setCounts notes how many messages are where, or that RabbitMQ did not answer.
func (s *state) setCounts(n queue.Counts, isUp bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queueAt, s.queueUp, s.ready = time.Now(), isUp && err == nil, &n.Ready
	// Reading the dead letters holds them for a moment: a smaller number counts
	// only when it is there twice.
	if s.dead == nil || n.Dead > *s.dead || n.Dead == s.lastDead {
		s.dead = &n.Dead
	}
	s.lastDead = n.Dead
	if err != nil {
		s.ready, s.dead = nil, nil
	}
	// the curve gets the queue's depth when it has changed
	if n := len(s.depth); n == 0 || !reflect.DeepEqual(s.depth[n-1].Ready, s.ready) {
		s.seq++
		s.depth = append(s.depth[max(0, n+1-maxSamples):], sample{At: s.queueAt, Ready: s.ready, seq: s.seq})
	}
}

// cursor returns the time from which on changed records have to be read, zero for all,
// and whether they have to be counted although none has changed.
func (s *state) cursor() (since time.Time, count bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.loaded {
		return time.Time{}, true
	}
	since = s.changedAt
	if time.Since(s.newAt) <= overlap {
		since = since.Add(-overlap)
	}
	return since, time.Since(s.storedAt) >= countInterval
}

// applyRecords takes over records that have changed, or all that there are, and the
// number of those that are stored, unless it is nil. Or it notes that MongoDB did not
// answer.
func (s *state) applyRecords(found []record, all bool, stored *int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, next := time.Now(), s.seq+1
	s.recordsAt, s.recordsUp = now, err == nil
	if err != nil {
		return
	}
	if all {
		s.records, s.seq, s.wholeSeq = map[string]record{}, next, next
	}
	for _, r := range found {
		if known, ok := s.records[r.ID]; ok && known.ChangedAt.Equal(r.ChangedAt) && known.Status == r.Status && len(known.Runs) == len(r.Runs) {
			continue
		}
		r.seq, s.seq = next, next
		s.records[r.ID] = r
		if r.ChangedAt.After(s.changedAt) {
			s.changedAt, s.newAt = r.ChangedAt, now
		}
	}
	if more := len(s.records) - window; more > 0 {
		for _, r := range slices.SortedFunc(maps.Values(s.records), byAge)[:more] {
			delete(s.records, r.ID)
		}
	}
	// Read all again when a poll may have passed some over, or when somebody has deleted
	// some: nothing tells which.
	s.loaded = all || len(found) < window
	if stored != nil {
		s.loaded = s.loaded && (s.stored == nil || *stored >= *s.stored)
		s.stored, s.storedAt = stored, now
	}
}

// byAge sorts the records in the order in which they are forgotten.
func byAge(a, b record) int {
	return cmp.Or(
		cmp.Compare(slices.Index(states, a.Status), slices.Index(states, b.Status)),
		a.ChangedAt.Compare(b.ChangedAt),
		cmp.Compare(a.ID, b.ID),
	)
}

// needsDead says whether the dead letters have to be listed: when two of these are so.
// There are more or fewer than were listed; the list is old, and as many may be others;
// somebody watches. Listing is not free: each of them is replaced by a copy.
func (s *state) needsDead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead == nil || *s.dead == 0 && len(s.letters) == 0 {
		return false
	}
	others := min(*s.dead, maxDead) != len(s.letters)
	old := time.Since(s.lettersAt) >= listInterval
	watched := time.Since(s.askedAt) < listInterval
	return others && old || others && watched || old && watched
}

// setDead takes over a list of the dead letters.
func (s *state) setDead(letters []queue.DeadLetter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range letters {
		letters[i].Body, letters[i].Reason = contract.Shorten(d.Body, maxBytes), contract.Shorten(d.Reason, maxBytes)
		letters[i].Job = cmp.Or(d.Job, s.records[d.ID].Job)
	}
	s.lettersAt = time.Now()
	if !slices.Equal(letters, s.letters) {
		s.seq++
		s.letters, s.lettersSeq = append([]queue.DeadLetter{}, letters...), s.seq // null would say that nothing has changed
	}
}

// current returns how things were at the last poll.
func (s *state) current() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status()
}

func (s *state) status() *Status {
	now := time.Now()
	st := &Status{Time: now.UTC().Truncate(time.Millisecond), RabbitMQ: "down", MongoDB: "down"}
	if now.Sub(s.queueAt) < tooOld {
		st.Ready, st.Dead = s.ready, s.dead
		if s.queueUp {
			st.RabbitMQ = "up"
		}
	}
	if !s.recordsUp || now.Sub(s.recordsAt) >= tooOld {
		return st
	}
	st.MongoDB, st.Records = "up", s.stored
	// RabbitMQ may have given a message up whose record says that a Job works on it.
	dead := map[string]bool{}
	for _, d := range s.letters {
		dead[d.ID] = true
	}
	inWork, jobs := 0, map[string]bool{}
	for _, r := range s.records {
		if r.Status == records.Processing && !dead[r.ID] {
			inWork++
			jobs[r.Job] = true
		}
	}
	if n := len(jobs); inWork < window && (s.dead == nil || *s.dead <= len(s.letters)) { // else not all are known here
		st.InWork, st.Jobs = &inWork, &n
	}
	return st
}

// changes returns, as JSON, what has changed since the one of the cursors that is this
// state's, and everything when none is.
func (s *state) changes(cursors []string) []byte {
	s.mu.Lock() // also while it is encoded: some milliseconds, when it is everything
	defer s.mu.Unlock()
	s.askedAt = time.Now()
	after := uint64(0)
	for _, cursor := range cursors {
		if seq, ok := strings.CutPrefix(cursor, s.name+"-"); ok {
			after, _ = strconv.ParseUint(seq, 10, 64) // 0 when it is no number
		}
	}
	if after < s.wholeSeq || after > s.seq {
		after = 0
	}
	if time.Since(s.answersAt) >= reuse || s.answers[after] == nil && len(s.answers) >= maxAnswers {
		s.answers, s.answersAt = map[uint64][]byte{}, s.askedAt
	}
	if s.answers[after] == nil {
		s.answers[after], _ = json.Marshal(s.changesAfter(after)) // these types can be encoded
	}
	return s.answers[after]
}

func (s *state) changesAfter(after uint64) changes {
	c := changes{Cursor: s.name + "-" + strconv.FormatUint(s.seq, 10), Whole: after == 0 && s.wholeSeq > 0, Depth: s.depth}
	if !s.queueAt.IsZero() && !s.recordsAt.IsZero() {
		c.Status = s.status()
	}
	for len(c.Depth) > 0 && c.Depth[0].seq <= after {
		c.Depth = c.Depth[1:]
	}
	for _, r := range s.records {
		if r.seq > after {
			c.Records = append(c.Records, r)
		}
	}
	slices.SortFunc(c.Records, byAge)
	if after == 0 || s.lettersSeq > after {
		c.Dead = s.letters
	}
	return c
}

func newRecord(r records.Record) record {
	runs := slices.SortedFunc(slices.Values(r.Runs), func(a, b records.Run) int { return a.ClaimedAt.Compare(b.ClaimedAt) })
	r.Name, r.Content, r.Error = contract.Shorten(r.Name, maxBytes), contract.Shorten(r.Content, maxBytes), contract.Shorten(r.Error, maxBytes)
	r.Runs = nil
	return record{Record: r, Runs: runs[max(0, len(runs)-maxRuns):], ChangedAt: r.ChangedAt}
}
