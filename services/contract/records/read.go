package records

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

const (
	// answerTimeout bounds the wait for each answer of a cursor: a connection that has
	// fallen silent would keep a reader waiting for minutes.
	answerTimeout = 10 * time.Second
	// batchSize bounds the memory of a reader: by default MongoDB sends up to 16 MB at
	// a time. 64 of the largest records are 4 MB.
	batchSize = 64
	// finishedBatch is larger, because those records come without their content.
	finishedBatch = 1000
	// settleTime is how long a record may become visible after its storedAt: the server
	// notes the time first and stores then, several at a time.
	settleTime = 2 * time.Second
)

// Query selects records.
type Query struct {
	Name  string // only records with this name, unless empty
	After string // only records stored after the one with this id, unless empty
	Limit int64  // at most so many, unless 0
	// Settled leaves out the records of the last two seconds: one that comes before them
	// may not be visible yet. A reader that goes on with After needs it.
	Settled bool
}

// List yields the matching records in the order in which they were stored, as
// MongoDB delivers them, without their runs and changes. After an error it yields
// nothing more. It is an ErrUnknown when there is no record with the id After.
func (s *Store) List(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		filter, err := s.filter(ctx, q)
		if err != nil {
			yield(Record{}, err)
			return
		}
		s.read(ctx, filter, q.Limit, options.Find().
			SetSort(bson.D{{Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}}).
			SetProjection(bson.D{{Key: "runs", Value: 0}, {Key: "changedAt", Value: 0}}).
			SetBatchSize(batchSize))(yield)
	}
}

func (s *Store) filter(ctx context.Context, q Query) (filter bson.D, err error) {
	filter = bson.D{} // not nil
	if q.Name != "" {
		filter = append(filter, bson.E{Key: "name", Value: q.Name})
	}
	if q.After != "" {
		last, err := s.find(ctx, q.After)
		if err != nil {
			return nil, err
		}
		// the first condition lets the index skip what comes before
		filter = append(filter,
			bson.E{Key: "storedAt", Value: bson.D{{Key: "$gte", Value: last.StoredAt}}},
			bson.E{Key: "$or", Value: bson.A{
				bson.D{{Key: "storedAt", Value: bson.D{{Key: "$gt", Value: last.StoredAt}}}},
				bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: last.ID}}}},
			}})
	}
	if q.Settled {
		server, err := s.hello(ctx)
		if err != nil {
			return nil, err
		}
		if server.LocalTime.IsZero() { // every record would be left out
			return nil, errors.New("ask the server for its time: its answer to hello has no localTime")
		}
		// not $lte: a document that is no record may have no time, and should be named
		filter = append(filter, bson.E{Key: "$nor", Value: bson.A{
			bson.D{{Key: "storedAt", Value: bson.D{{Key: "$gt", Value: server.LocalTime.Add(-settleTime)}}}},
		}})
	}
	return filter, nil
}

// hello is what the server says of itself.
type hello struct {
	LocalTime time.Time `bson:"localTime"`
	SetName   string    `bson:"setName"` // of a replica set
}

func (s *Store) hello(ctx context.Context) (h hello, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err = s.collection.Database().RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&h); err != nil {
		err = fmt.Errorf("ask the server about itself: %w", err)
	}
	return h, err
}

func (s *Store) find(ctx context.Context, id string) (Record, error) {
	for r, err := range s.read(ctx, bson.D{{Key: "_id", Value: id}}, 1, options.Find()) {
		return r, err
	}
	return Record{}, fmt.Errorf("%w: %s", ErrUnknown, id)
}

// Changed yields the records that changed after the given time by the server's
// clock, the last change first, at most limit. It yields only those with one of
// the given states: name them all to use the index.
func (s *Store) Changed(ctx context.Context, after time.Time, limit int64, states ...Status) iter.Seq2[Record, error] {
	filter := bson.D{{Key: "status", Value: bson.D{{Key: "$in", Value: states}}}}
	if !after.IsZero() {
		filter = append(filter, bson.E{Key: "changedAt", Value: bson.D{{Key: "$gt", Value: after}}})
	}
	return s.read(ctx, filter, limit, options.Find().
		SetSort(bson.D{{Key: "changedAt", Value: -1}}))
}

// Finished yields the records that are done, the first that became so first,
// without their name and content: those that were done at the given time or later, by
// the server's clock. A record that is done never changes again.
func (s *Store) Finished(ctx context.Context, since time.Time) iter.Seq2[Record, error] {
	filter := bson.D{{Key: "status", Value: Done}, {Key: "changedAt", Value: bson.D{{Key: "$gte", Value: since}}}}
	return s.read(ctx, filter, 0, options.Find().
		SetSort(bson.D{{Key: "changedAt", Value: 1}}).
		SetProjection(bson.D{{Key: "name", Value: 0}, {Key: "content", Value: 0}}).
		SetBatchSize(finishedBatch))
}

// Newest returns when the event of the record that was stored last was sent. The
// queue is FIFO, so nearly all events sent before it have been claimed. The zero time
// means that there is no record.
func (s *Store) Newest(ctx context.Context) (sentAt time.Time, err error) {
	for r, err := range s.read(ctx, bson.D{}, 1, options.Find().
		SetSort(bson.D{{Key: "storedAt", Value: -1}, {Key: "_id", Value: -1}}).
		SetProjection(short)) {
		return r.SentAt, err
	}
	return time.Time{}, nil
}

// CountByStatus counts the records with each of the given states.
func (s *Store) CountByStatus(ctx context.Context, states ...Status) (map[Status]int64, error) {
	counts := map[Status]int64{}
	for _, status := range states {
		n, err := s.collection.CountDocuments(ctx, bson.D{{Key: "status", Value: status}, {Key: "_id", Value: bson.D{{Key: "$type", Value: "string"}}}})
		if err != nil {
			return nil, fmt.Errorf("count records: %w", err)
		}
		counts[status] = n
	}
	return counts, nil
}

// Count returns how many records there are. It looks at none of them, only at what
// somebody else has put there.
func (s *Store) Count(ctx context.Context) (int64, error) {
	all, err := s.collection.EstimatedDocumentCount(ctx)
	if err != nil {
		return 0, fmt.Errorf("count records: %w", err)
	}
	foreign, err := s.collection.CountDocuments(ctx, bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "storedAt", Value: nil}}, bson.D{{Key: "_id", Value: bson.D{{Key: "$type", Value: "objectId"}}}},
	}}})
	if err != nil {
		return 0, fmt.Errorf("count records: %w", err)
	}
	return max(0, all-foreign), nil
}

// Jobs returns the jobs of the records with the given ids, by id.
func (s *Store) Jobs(ctx context.Context, ids []string) (map[string]string, error) {
	jobs := map[string]string{}
	for r, err := range s.read(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}}, 0, options.Find().SetProjection(short)) {
		if err != nil {
			return nil, err
		}
		jobs[r.ID] = r.Job
	}
	return jobs, nil
}

// short leaves out what may be long.
var short = bson.D{{Key: "name", Value: 0}, {Key: "content", Value: 0}, {Key: "runs", Value: 0}}

// read yields what a find delivers and is a record, at most limit of them unless that is
// 0. The server's own limit would count what is passed over.
func (s *Store) read(ctx context.Context, filter bson.D, limit int64, o *options.FindOptionsBuilder) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if limit > 0 {
			o.SetBatchSize(int32(min(limit, batchSize)))
		}
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		cursor, err := s.collection.Find(limited, filter, o)
		cancel()
		if err != nil {
			yield(Record{}, fmt.Errorf("find records: %w", err))
			return
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = cursor.Close(ctx) // without a server it is closed there already
		}()
		for n := int64(0); (n < limit || limit == 0) && next(ctx, cursor); {
			var r Record
			// cursor.Decode would allocate a reader of 4 KiB for each record
			err := bson.Unmarshal(cursor.Current, &r)
			if err == nil && (r.StoredAt.IsZero() || r.Status == "") {
				err = errors.New("it has no storedAt or no status")
			}
			if err != nil { // somebody else's document
				s.foreign.Do(func() { s.Foreign(cursor.Current.Lookup("_id").String(), err.Error()) })
				continue
			}
			if n++; !yield(r, nil) {
				return
			}
		}
		if err := cursor.Err(); err != nil {
			yield(Record{}, fmt.Errorf("read records: %w", err))
		}
	}
}

// next moves a cursor on. Each answer of the server has a deadline of its own.
func next(ctx context.Context, cursor *mongo.Cursor) bool {
	if cursor.RemainingBatchLength() == 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, answerTimeout)
		defer cancel()
	}
	return cursor.Next(ctx)
}
