package records_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"keda-p2/services/contract"
	"keda-p2/services/contract/contracttest"
	"keda-p2/services/contract/records"
)

func message(id, name string) contract.Message {
	return contract.Message{ID: id, Event: contract.Event{Name: name, Content: "content of " + name}, SentAt: time.UnixMilli(1_700_000_000_123)}
}

func run(job string, attempt int) records.Run {
	return records.Run{Job: job, Attempt: attempt, StartedAt: time.UnixMilli(1_700_000_001_000).UTC(), ClaimedAt: time.UnixMilli(1_700_000_001_234).UTC()}
}

func list(t *testing.T, s *records.Store, q records.Query) []records.Record {
	t.Helper()
	var all []records.Record
	for r, err := range s.List(t.Context(), q) {
		require.NoError(t, err)
		all = append(all, r)
	}
	return all
}

func names(all []records.Record) []string {
	var out []string
	for _, r := range all {
		out = append(out, r.Name)
	}
	return out
}

func TestARecordsLife(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	m := message("id", "имя \x00 名前")
	before := time.Now().Truncate(time.Millisecond)

	require.NoError(t, s.Begin(t.Context(), m, run("job-1", 1)))
	r := list(t, s, records.Query{})[0]
	require.Equal(t, m.Event, contract.Event{Name: r.Name, Content: r.Content})
	require.Equal(t, records.Processing, r.Status)
	require.Equal(t, "job-1", r.Job)
	require.Equal(t, 1, r.Attempts)
	require.Equal(t, m.SentAt.UTC(), r.SentAt.UTC())
	require.WithinRange(t, r.StoredAt, before, time.Now())
	require.True(t, r.FinishedAt.IsZero())
	stored := r.StoredAt

	// a redelivery, to another Job
	require.NoError(t, s.Begin(t.Context(), m, run("job-2", 2)))
	jobs, err := s.Jobs(t.Context(), []string{"id", "nobody"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"id": "job-2"}, jobs)
	all := list(t, s, records.Query{})
	require.Len(t, all, 1)
	require.Equal(t, "job-2", all[0].Job)
	require.Equal(t, 2, all[0].Attempts)
	require.Equal(t, stored, all[0].StoredAt)
	// sent twice, as when the first answer is lost
	require.NoError(t, s.Begin(t.Context(), m, run("job-2", 2)))
	require.Empty(t, all[0].Runs, "List leaves them out")
	for r, err = range s.Changed(t.Context(), time.Time{}, 1, records.Processing) {
		require.NoError(t, err)
	}
	require.Equal(t, []records.Run{run("job-1", 1), run("job-2", 2)}, r.Runs)

	require.NoError(t, s.Finish(t.Context(), "id"))
	r = list(t, s, records.Query{})[0]
	require.Equal(t, records.Done, r.Status)
	require.False(t, r.FinishedAt.Before(r.StoredAt))

	// nothing changes a record that is done
	require.ErrorIs(t, s.Begin(t.Context(), m, run("job-3", 3)), records.ErrDone)
	require.NoError(t, s.Finish(t.Context(), "id"))
	require.Equal(t, []records.Record{r}, list(t, s, records.Query{}))
}

func TestARecordThatFails(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	begin := func(attempt int) {
		require.NoError(t, s.Begin(t.Context(), message("id", "name"), run("job", attempt)))
	}
	is := func(status records.Status, text string) {
		t.Helper()
		all := list(t, s, records.Query{})
		require.Len(t, all, 1)
		require.Equal(t, status, all[0].Status)
		require.Equal(t, text, all[0].Error)
	}
	begin(1)
	require.NoError(t, s.Fail(t.Context(), "id", "job", records.Retrying, "no disk"))
	is(records.Retrying, "no disk")
	begin(2)
	is(records.Processing, "no disk")
	long := strings.Repeat("ы", 1000)
	require.NoError(t, s.Fail(t.Context(), "id", "job", records.Failed, long+"\xff"))
	is(records.Failed, long[:1000]+"…")
	begin(3) // redriven
	require.NoError(t, s.Finish(t.Context(), "id"))
	is(records.Done, "")
	require.NoError(t, s.Fail(t.Context(), "id", "job", records.Failed, "late"), "another Job has done it meanwhile")
	is(records.Done, "")
}

// A Job that RabbitMQ takes for dead may note its failure after the next one has given
// the message up.
func TestOnlyTheLastJobNotesAFailure(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	for i, job := range []string{"job-1", "job-2"} {
		require.NoError(t, s.Begin(t.Context(), message("id", "name"), run(job, i+1)))
	}
	require.NoError(t, s.Fail(t.Context(), "id", "job-2", records.Failed, "for good"))
	require.NoError(t, s.Fail(t.Context(), "id", "job-1", records.Retrying, "late"))
	all := list(t, s, records.Query{})
	require.Len(t, all, 1)
	require.Equal(t, records.Failed, all[0].Status)
	require.Equal(t, "for good", all[0].Error)
}

func TestTwoJobsWithOneMessageMakeOneRecord(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	var both sync.WaitGroup
	for i := range 8 {
		both.Go(func() {
			if err := s.Begin(t.Context(), message("id", "a"), run(fmt.Sprint("job-", i), 1)); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	require.Len(t, list(t, s, records.Query{}), 1)
}

// Whoever stops in the middle leaves nothing behind, and a context that ends is an
// error: without it some of the records would look like all.
func TestListIsLeft(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	for i := range 300 { // more than a batch
		require.NoError(t, s.Begin(t.Context(), message(fmt.Sprint("id-", i), strings.Repeat("x", 1000)), run("job", 1)))
	}
	for r, err := range s.List(t.Context(), records.Query{}) {
		require.NoError(t, err)
		require.Len(t, r.Name, 1000)
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, last := 0, error(nil)
	for _, last = range s.List(ctx, records.Query{}) {
		cancel()
		n++
	}
	require.ErrorIs(t, last, context.Canceled)
	require.Less(t, n, 300)
	require.Len(t, list(t, s, records.Query{}), 300)
}

func TestListInTheOrderOfStoring(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	require.NoError(t, s.CreateIndexes(t.Context()))
	require.NoError(t, s.CreateIndexes(t.Context()), "once more does no harm")
	require.Empty(t, list(t, s, records.Query{}))
	// ids that sort against the order of storing, and several in a millisecond
	var want []string
	for i := range 30 {
		name := []string{"even", "odd"}[i%2]
		require.NoError(t, s.Begin(t.Context(), message(fmt.Sprintf("id-%02d", 99-i), name), run("job", 1)))
		want = append(want, name)
	}
	all := list(t, s, records.Query{})
	require.ElementsMatch(t, want, names(all))
	require.True(t, slices.IsSortedFunc(all, func(a, b records.Record) int { return a.StoredAt.Compare(b.StoredAt) }))

	require.Equal(t, all[:7], list(t, s, records.Query{Limit: 7}))
	require.Equal(t, all[12:15], list(t, s, records.Query{After: all[11].ID, Limit: 3}))
	require.Empty(t, list(t, s, records.Query{After: all[29].ID}))
	require.Len(t, list(t, s, records.Query{Name: "odd"}), 15)
	require.Empty(t, list(t, s, records.Query{Name: "none"}))

	// page by page, all of them once
	var paged []records.Record
	for q := (records.Query{Limit: 4}); ; q.After = paged[len(paged)-1].ID {
		page := list(t, s, q)
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
	}
	require.Equal(t, all, paged)
}

// A reader that goes on from the last record that it has seen sees each one once, however
// the Jobs' clocks differ and however long each write takes.
func TestAReaderThatFollowsSeesEveryRecordOnce(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	require.NoError(t, s.CreateIndexes(t.Context()))
	const writers, each = 10, 12
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				if err := s.Begin(t.Context(), message(fmt.Sprintf("%d-%d", (w+i)%writers, i), "a"), run("job", 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := map[string]int{}
	last := ""
	require.Eventually(t, func() bool {
		for _, r := range list(t, s, records.Query{After: last, Limit: 7, Settled: true}) {
			seen[r.ID]++
			last = r.ID
		}
		return len(seen) == writers*each
	}, 5*contracttest.Patience, contracttest.Tick)
	writing.Wait()
	for id, n := range seen {
		require.Equal(t, 1, n, id)
	}
}

// A record that comes before another one may become visible after it.
func TestARecordIsHeldBackUntilNoneComesBeforeIt(t *testing.T) {
	t.Parallel()
	s, collection := storeAndCollection(t)
	insert := func(id string, at time.Time) {
		_, err := collection.InsertOne(t.Context(), records.Record{ID: id, Status: records.Processing, StoredAt: at})
		require.NoError(t, err)
	}
	var at time.Time
	require.Eventually(t, func() bool { // a slow machine may take longer than the five seconds
		_, err := collection.DeleteMany(t.Context(), bson.D{})
		require.NoError(t, err)
		at = time.Now().Add(3 * time.Second) // before that it is held back as well
		insert("b", at)
		return len(list(t, s, records.Query{Settled: true})) == 0
	}, contracttest.Patience, contracttest.Tick)
	require.Len(t, list(t, s, records.Query{}), 1)
	insert("a", at.Add(-time.Millisecond))
	require.Eventually(t, func() bool { return len(list(t, s, records.Query{Settled: true, After: "a"})) == 1 }, contracttest.Patience, contracttest.Tick)
	require.Len(t, list(t, s, records.Query{Settled: true}), 2)
}

// storeAndCollection returns a store and what is below it.
func storeAndCollection(t *testing.T) (*records.Store, *mongo.Collection) {
	t.Helper()
	c := contracttest.MongoDB(t)
	s, err := records.Open(c, "test")
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	client, err := records.Connect(c, "test")
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	require.Eventually(t, func() bool {
		return s.Ping(t.Context()) == nil && client.Ping(t.Context(), nil) == nil
	}, contracttest.Patience, contracttest.Tick)
	return s, client.Database(c.DB).Collection(c.Collection)
}

// The reason must not be that there is no record.
func TestAUniqueIndexOfSomebodyElseIsNamed(t *testing.T) {
	t.Parallel()
	s, collection := storeAndCollection(t)
	_, err := collection.Indexes().CreateOne(t.Context(), mongo.IndexModel{Keys: bson.D{{Key: "name", Value: 1}}, Options: options.Index().SetUnique(true)})
	require.NoError(t, err)
	require.NoError(t, s.Begin(t.Context(), message("id-1", "a"), run("job", 1)))
	err = s.Begin(t.Context(), message("id-2", "a"), run("job", 1))
	require.True(t, mongo.IsDuplicateKeyError(err), "%v", err)
}

// Of documents that somebody else has put into the collection, one is named.
func TestDocumentsThatAreNoRecordsArePassedOver(t *testing.T) {
	t.Parallel()
	s, collection := storeAndCollection(t)
	var named []string
	s.Foreign = func(id, reason string) { named = append(named, id+": "+reason) }
	require.NoError(t, s.Begin(t.Context(), message("ours", "a"), run("job", 1)))
	require.NoError(t, s.Finish(t.Context(), "ours"))

	before, after := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	of := func(storedAt time.Time, fields ...bson.E) bson.D {
		return append(bson.D{{Key: "storedAt", Value: storedAt}, {Key: "changedAt", Value: after}}, fields...)
	}
	insert := func(documents ...any) {
		_, err := collection.InsertMany(t.Context(), documents)
		require.NoError(t, err)
	}
	done := bson.E{Key: "status", Value: records.Done}
	insert(
		bson.D{{Key: "name", Value: "a"}, {Key: "content", Value: "c"}}, // as insertOne in mongosh makes it
		bson.D{{Key: "_id", Value: 17}, done, {Key: "changedAt", Value: after}},
		of(before, bson.E{Key: "_id", Value: bson.NewObjectID()}, done),
		of(after, bson.E{Key: "_id", Value: bson.NewObjectID()}, done),
	)
	n, err := s.Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	counts, err := s.CountByStatus(t.Context(), records.Done)
	require.NoError(t, err)
	require.EqualValues(t, 1, counts[records.Done])
	insert(
		of(before, bson.E{Key: "_id", Value: "a text for a number"}, bson.E{Key: "attempts", Value: "one"}, done),
		of(after, bson.E{Key: "_id", Value: "a time that is none"}, bson.E{Key: "sentAt", Value: "today"}, done),
		of(before, bson.E{Key: "_id", Value: "no status"}),
	)
	only := func(seq iter.Seq2[records.Record, error]) {
		t.Helper()
		var ids []string
		for r, err := range seq {
			require.NoError(t, err)
			ids = append(ids, r.ID)
		}
		require.Equal(t, []string{"ours"}, ids)
	}
	require.Eventually(t, func() bool {
		return len(list(t, s, records.Query{Settled: true})) == 1
	}, contracttest.Patience, contracttest.Tick)
	only(s.List(t.Context(), records.Query{}))
	only(s.List(t.Context(), records.Query{Limit: 1}))
	only(s.Changed(t.Context(), time.Time{}, 1, records.Done))
	only(s.Finished(t.Context(), before))
	sent, err := s.Newest(t.Context())
	require.NoError(t, err)
	require.Equal(t, message("", "").SentAt.UTC(), sent.UTC())
	jobs, err := s.Jobs(t.Context(), []string{"ours", "a text for a number"})
	require.NoError(t, err)
	require.Equal(t, "job", jobs["ours"])
	require.ErrorIs(t, failure(s.List(t.Context(), records.Query{After: "no status"})), records.ErrUnknown)
	require.Len(t, named, 1)
	require.Contains(t, named[0], "_id")
}

func changed(t *testing.T, s *records.Store, after time.Time, limit int64, states ...records.Status) (ids []string, last time.Time) {
	t.Helper()
	for r, err := range s.Changed(t.Context(), after, limit, states...) {
		require.NoError(t, err)
		ids = append(ids, r.ID)
		if r.ChangedAt.After(last) {
			last = r.ChangedAt
		}
	}
	return ids, last
}

func TestChanged(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	require.NoError(t, s.CreateIndexes(t.Context()))
	both := []records.Status{records.Processing, records.Done}
	none, _ := changed(t, s, time.Time{}, 10, both...)
	require.Empty(t, none)

	var last time.Time
	for i := range 5 {
		// the server's clock must move on between two changes
		before := last
		require.Eventually(t, func() bool {
			require.NoError(t, s.Begin(t.Context(), message(fmt.Sprint(i), "a"), run("job", 1)))
			_, last = changed(t, s, time.Time{}, 1, both...)
			return last.After(before)
		}, contracttest.Patience, contracttest.Tick)
	}
	n, err := s.Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 5, n)
	ids, last := changed(t, s, time.Time{}, 3, both...)
	require.Equal(t, []string{"4", "3", "2"}, ids, "the last change first")
	ids, _ = changed(t, s, last, 10, both...)
	require.Empty(t, ids)

	require.Eventually(t, func() bool {
		require.NoError(t, s.Finish(t.Context(), "0"))
		require.NoError(t, s.Begin(t.Context(), message("1", "a"), run("job", 2)))
		ids, _ = changed(t, s, last, 10, both...)
		return len(ids) == 2
	}, contracttest.Patience, contracttest.Tick)
	require.ElementsMatch(t, []string{"0", "1"}, ids)
	ids, _ = changed(t, s, time.Time{}, 10, records.Done)
	require.Equal(t, []string{"0"}, ids)
}

func TestListAfterAnUnknownRecord(t *testing.T) {
	t.Parallel()
	s := contracttest.Store(t)
	require.ErrorIs(t, failure(s.List(t.Context(), records.Query{After: "nobody"})), records.ErrUnknown)
}

// failure returns the error with which a sequence ends.
func failure(seq iter.Seq2[records.Record, error]) (err error) {
	for _, err = range seq {
	}
	return err
}

func TestWithoutAServer(t *testing.T) {
	t.Parallel()
	c := records.Config{Port: "1", DB: "db", Collection: "c"}
	c.Host, c.User, c.Password = "127.0.0.1", "root", "s3cret"
	s, err := records.Open(c, "test")
	require.NoError(t, err, "a service must start before its database")
	err = s.Ping(t.Context())
	require.Error(t, err)
	require.NotContains(t, err.Error(), c.Password)
	require.Error(t, s.Begin(t.Context(), message("id", "a"), run("job", 1)))
	require.Error(t, failure(s.List(t.Context(), records.Query{})))
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	var c records.Config
	err := c.Validate()
	for _, problem := range []string{"MONGODB_HOST", "MONGODB_DB", "MONGODB_COLLECTION"} {
		require.ErrorContains(t, err, problem)
	}
}
