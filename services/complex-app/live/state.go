package live

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// What is kept, at most.
const (
	window      = 1000 // records, without those that are worked on
	maxAccepted = 1000 // events without a record
	maxDead     = 200  // dead letters
	maxSamples  = 2000 // changes of the queue's depth
	maxRuns     = 10   // attempts of one message
	shownRunes  = 200  // of a name, a content, a body, a reason
)

const (
	// overlap is how far back the looks at the changes go, for as long after the
	// last one: a change with an earlier time may become visible after it.
	overlap = 2 * time.Second
	// countInterval is how often the records are counted although none changed.
	countInterval = 10 * time.Second
	// listInterval is how often the dead letters are listed although their number
	// is the same.
	listInterval = 30 * time.Second
	// claimPatience is how long an accepted event that no longer waits may be
	// without a record before it is forgotten.
	claimPatience = 10 * time.Second
)

// Up and down are what a server can be.
const (
	Up   = "up"
	Down = "down"
)

// Status is the answer to GET /status. What cannot be known now is null.
type Status struct {
	Time     time.Time `json:"time"`
	RabbitMQ string    `json:"rabbitMQ"` // up or down
	MongoDB  string    `json:"mongoDB"`  // up or down
	Ready    *int      `json:"ready"`    // messages that wait for a Job
	InWork   *int      `json:"inWork"`   // messages that a Job works on
	Dead     *int      `json:"dead"`     // messages that were given up
	Records  *int64    `json:"records"`  // stored ones
	Jobs     *int      `json:"jobs"`     // Jobs at work
}

// The parts of an update. Times are in milliseconds since 1970, and missing when
// they are not known.
type (
	update struct {
		At       int64        `json:"at"`              // our clock now
		Whole    bool         `json:"whole,omitempty"` // nothing before it counts any more
		Status   *Status      `json:"status,omitempty"`
		Depth    []sample     `json:"depth,omitempty"`
		Accepted []accepted   `json:"accepted,omitempty"`
		Gone     []string     `json:"gone,omitempty"` // ids of accepted events that no longer wait
		Records  []Record     `json:"records,omitempty"`
		Dead     []deadLetter `json:"dead"` // all of them, or null when there is no change
	}

	// sample is the number of waiting messages from a time on: null is unknown.
	sample struct {
		At    int64 `json:"at"`
		Ready *int  `json:"ready"`
	}

	// accepted is an event that this process has sent and that has no record yet.
	accepted struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		SentAt int64  `json:"sentAt"`

		claimed time.Time // when it was first missing from the queue
	}

	// Record is what the page needs of a stored one.
	Record struct {
		ID         string         `json:"id"`
		Name       string         `json:"name"`    // its beginning
		Content    string         `json:"content"` // its beginning
		Status     records.Status `json:"status"`
		Job        string         `json:"job"`
		Attempts   int            `json:"attempts"`
		SentAt     int64          `json:"sentAt,omitempty"`
		StoredAt   int64          `json:"storedAt"`
		FinishedAt int64          `json:"finishedAt,omitempty"`
		Runs       []run          `json:"runs,omitempty"`

		changed time.Time
	}

	run struct {
		Job       string `json:"job"`
		Attempt   int    `json:"attempt"`
		StartedAt int64  `json:"startedAt"`
		ClaimedAt int64  `json:"claimedAt"`
	}

	deadLetter struct {
		ID       string `json:"id"`
		Body     string `json:"body"` // its beginning
		Reason   string `json:"reason"`
		Attempts int    `json:"attempts"`
		Job      string `json:"job"`
		SentAt   int64  `json:"sentAt,omitempty"`
		DeadAt   int64  `json:"deadAt,omitempty"`
	}
)

// state is what is known, and what of it the watchers have not been told yet.
type state struct {
	queueAt, recordsAt time.Time // when the servers were last looked at
	queueUp, recordsUp bool

	ready, dead *int // nil when not known
	lastDead    int  // the count before, which may be that of a moment
	list        []deadLetter
	stale       bool // the list is known to be out of date
	listedAt    time.Time
	listAfter   time.Time // not before
	stored      *int64
	storedAt    time.Time // when they were counted

	accepted []accepted // in the order of their sending
	records  map[string]Record
	loaded   bool      // records holds what there was when the polling began
	latest   time.Time // change among the records, by the database's clock
	latestAt time.Time // when it was seen, by ours
	depth    []sample

	pending update
	told    Status    // as last sent
	toldAt  time.Time // when anything was
}

func newState() state { return state{records: map[string]Record{}, stale: true} }

// pause makes the next polls, whenever they come, read everything again. What was
// seen of the queue stays, with a gap from now on.
func (s *state) pause() {
	s.loaded, s.stale, s.ready, s.dead = false, true, nil, nil
	s.queueAt, s.recordsAt, s.told = time.Time{}, time.Time{}, Status{}
	s.sample()
}

// accept adds events, those without a record.
func (s *state) accept(events []accepted) {
	if more := len(events) - maxAccepted; more > 0 {
		events = events[more:] // the others would be forgotten below
	}
	known := make(map[string]bool, len(s.accepted))
	for _, a := range s.accepted {
		known[a.ID] = true
	}
	for _, a := range events {
		if _, ok := s.records[a.ID]; ok || known[a.ID] {
			continue // sent again under the same key, or already done
		}
		known[a.ID] = true
		s.accepted = append(s.accepted, a)
		s.pending.Accepted = append(s.pending.Accepted, a)
	}
	if more := len(s.accepted) - maxAccepted; more > 0 {
		oldest := s.accepted[more-1].SentAt
		s.forget(func(a accepted) bool { return a.SentAt <= oldest })
	}
}

// forget removes accepted events, and tells the watchers.
func (s *state) forget(which func(accepted) bool) {
	s.accepted = slices.DeleteFunc(s.accepted, func(a accepted) bool {
		gone := which(a)
		if gone {
			s.pending.Gone = append(s.pending.Gone, a.ID)
		}
		return gone
	})
}

// counted notes how many messages are where. RabbitMQ gives the oldest message
// to the next Job: when fewer wait than we know of, those that are left are the
// youngest of ours.
func (s *state) counted(n queue.Counts, up bool) {
	now := time.Now()
	first := s.ready == nil
	s.queueAt, s.queueUp, s.ready = now, up, &n.Ready
	// whoever looks at dead letters has them for a moment: a number counts when
	// it is there twice
	if s.dead == nil || n.Dead == s.lastDead {
		s.dead = &n.Dead
	}
	s.lastDead = n.Dead
	s.sample()

	claimed := max(0, len(s.accepted)-n.Ready)
	for i := range s.accepted {
		switch a := &s.accepted[i]; {
		case i >= claimed:
			a.claimed = time.Time{}
		case a.claimed.IsZero():
			a.claimed = now
			if first { // nobody watched: it may have been done long ago
				a.claimed = now.Add(-claimPatience)
			}
		}
	}
	if s.recordsUp {
		s.forget(func(a accepted) bool { return !a.claimed.IsZero() && now.Sub(a.claimed) >= claimPatience })
	}
}

func (s *state) uncounted() {
	s.queueAt, s.queueUp, s.ready, s.dead = time.Now(), false, nil, nil
	s.sample()
}

// sample adds the queue's depth to the curve when it has changed.
func (s *state) sample() {
	if n := len(s.depth); n > 0 && equal(s.depth[n-1].Ready, s.ready) {
		return
	}
	d := sample{At: ms(time.Now()), Ready: s.ready}
	if len(s.depth) == maxSamples {
		s.depth = slices.Delete(s.depth, 0, maxSamples/10)
	}
	s.depth = append(s.depth, d)
	s.pending.Depth = append(s.pending.Depth, d)
}

// cursor returns the time from which on changes have to be read, and whether the
// records have to be counted although none has changed.
func (s *state) cursor() (since time.Time, count bool) {
	switch {
	case !s.loaded:
	case s.latest.IsZero(): // no record, or only those of an earlier version
		since = time.UnixMilli(0)
	case time.Since(s.latestAt) > overlap:
		since = s.latest
	default:
		since = s.latest.Add(-overlap)
	}
	return since, time.Since(s.storedAt) >= countInterval
}

// read takes over records that have changed, or all that are there.
func (s *state) read(found []Record, all bool) {
	s.recordsAt, s.recordsUp = time.Now(), true
	latest := s.latest
	if all {
		s.records, s.latest, s.loaded = map[string]Record{}, time.Time{}, true
		s.pending.Whole = true
	}
	for _, r := range found {
		before, known := s.records[r.ID]
		if known && before.changed.Equal(r.changed) && before.Status == r.Status && len(before.Runs) == len(r.Runs) {
			continue
		}
		s.records[r.ID] = r
		s.pending.Records = append(s.pending.Records, r)
		if r.changed.After(s.latest) {
			s.latest = r.changed
		}
	}
	if !s.latest.Equal(latest) {
		s.latestAt = s.recordsAt
	}
	if len(s.pending.Records) > 0 {
		s.accepted = slices.DeleteFunc(s.accepted, func(a accepted) bool {
			_, stored := s.records[a.ID] // which the page sees by itself
			return stored
		})
	}
	s.evict()
}

// evict forgets the records that changed longest ago, those in work last.
func (s *state) evict() {
	if len(s.records) <= window {
		return
	}
	byAge := slices.SortedFunc(maps.Values(s.records), func(a, b Record) int {
		if (a.Status == records.Done) != (b.Status == records.Done) {
			if a.Status == records.Done {
				return -1
			}
			return 1
		}
		return a.changed.Compare(b.changed)
	})
	for _, r := range byAge[:len(byAge)-window] {
		delete(s.records, r.ID)
	}
}

// total notes how many records are stored. When there are fewer than before,
// somebody has deleted some, and all have to be read again.
func (s *state) total(n *int64) {
	if s.stored != nil && *n < *s.stored {
		s.loaded = false
	}
	s.stored, s.storedAt = n, time.Now()
}

func (s *state) unread() { s.recordsAt, s.recordsUp = time.Now(), false }

// listDead says whether the dead letters have to be listed: when there are more
// or fewer than before, and sometimes because they may be others.
func (s *state) listDead() bool {
	if s.dead == nil || time.Now().Before(s.listAfter) {
		return false
	}
	old := s.stale || time.Since(s.listedAt) >= listInterval
	return old && *s.dead > 0 || min(*s.dead, maxDead) != len(s.list)
}

func (s *state) listed(dead []queue.DeadLetter, ok bool) {
	if !ok {
		s.listAfter = time.Now().Add(listTimeout)
		return
	}
	s.stale, s.listedAt = false, time.Now()
	s.list = make([]deadLetter, 0, len(dead))
	for _, d := range dead {
		s.list = append(s.list, deadLetter{
			ID: d.ID, Body: shorten(d.Body), Reason: shorten(d.Reason), Attempts: d.Attempts,
			Job: cmp.Or(d.Job, s.records[d.ID].Job), SentAt: ms(d.SentAt), DeadAt: ms(d.DeadAt),
		})
	}
	s.pending.Dead = s.list
	s.forget(func(a accepted) bool {
		return slices.ContainsFunc(s.list, func(d deadLetter) bool { return d.ID == a.ID })
	})
}

// looked says whether both servers have been looked at since the polling began.
func (s *state) looked() bool { return !s.queueAt.IsZero() && !s.recordsAt.IsZero() }

func (s *state) polledSince(t time.Time) bool {
	return !s.queueAt.Before(t) && !s.recordsAt.Before(t)
}

// status sums up. A server that was not looked at since the given time is down.
func (s *state) status(since time.Time) Status {
	st := Status{Time: time.Now().UTC().Truncate(time.Millisecond), RabbitMQ: Down, MongoDB: Down}
	if !s.queueAt.Before(since) {
		st.Ready, st.Dead = s.ready, s.dead
		if s.queueUp {
			st.RabbitMQ = Up
		}
	}
	if s.recordsUp && !s.recordsAt.Before(since) {
		st.MongoDB, st.Records = Up, s.stored
		inWork, jobs := 0, map[string]struct{}{}
		for _, r := range s.records {
			// The broker has given a dead one up. One whose Job was killed counts
			// until the next Job has it.
			if r.Status == records.Processing && !slices.ContainsFunc(s.list, func(d deadLetter) bool { return d.ID == r.ID }) {
				inWork++
				jobs[r.Job] = struct{}{}
			}
		}
		n := len(jobs)
		st.InWork, st.Jobs = &inWork, &n
	}
	return st
}

// news returns what the watchers have not been told, if there is anything.
func (s *state) news(now time.Time) (update, bool) {
	news := s.pending
	if news.Whole {
		news = s.whole()
	}
	s.pending = update{}
	news.At = ms(now)
	// a poll may take its time, and the next one comes a second later
	st := s.status(now.Add(-pollTimeout - 2*pollInterval))
	changed := s.looked() && !st.equal(s.told)
	if changed {
		news.Status, s.told = &st, st
	}
	if !changed && !news.Whole && news.Dead == nil && len(news.Depth)+len(news.Accepted)+len(news.Gone)+len(news.Records) == 0 &&
		now.Sub(s.toldAt) < clockInterval {
		return update{}, false
	}
	s.toldAt = now
	return news, true
}

// whole is the update that a new watcher gets.
func (s *state) whole() update {
	now := time.Now()
	u := update{At: ms(now), Whole: true, Depth: s.depth, Accepted: s.accepted, Dead: s.list}
	if s.looked() { // else the first news has it
		st := s.status(now.Add(-pollTimeout - 2*pollInterval))
		u.Status = &st
	}
	if u.Dead == nil {
		u.Dead = []deadLetter{}
	}
	u.Records = slices.SortedFunc(maps.Values(s.records), func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.StoredAt, b.StoredAt), cmp.Compare(a.ID, b.ID))
	})
	return u
}

// equal compares two without their times.
func (s Status) equal(o Status) bool {
	return s.RabbitMQ == o.RabbitMQ && s.MongoDB == o.MongoDB && equal(s.Ready, o.Ready) && equal(s.InWork, o.InWork) &&
		equal(s.Dead, o.Dead) && equal(s.Records, o.Records) && equal(s.Jobs, o.Jobs)
}

func equal[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func newRecord(r records.Record) Record {
	short := Record{
		ID: r.ID, Name: shorten(r.Name), Content: shorten(r.Content), Status: r.Status, Job: r.Job, Attempts: r.Attempts,
		SentAt: ms(r.SentAt), StoredAt: ms(r.StoredAt), FinishedAt: ms(r.FinishedAt), changed: r.ChangedAt,
	}
	slices.SortFunc(r.Runs, func(a, b records.Run) int { return a.ClaimedAt.Compare(b.ClaimedAt) })
	for _, a := range r.Runs[max(0, len(r.Runs)-maxRuns):] {
		short.Runs = append(short.Runs, run{Job: a.Job, Attempt: a.Attempt, StartedAt: ms(a.StartedAt), ClaimedAt: ms(a.ClaimedAt)})
	}
	return short
}

// ms is 0 for no time.
func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// shorten keeps no more of a long text than is shown.
func shorten(text string) string {
	n := 0
	for i := range text {
		if n++; n > shownRunes {
			return strings.Clone(text[:i]) + "…"
		}
	}
	return text
}
