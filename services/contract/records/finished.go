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

// finishedBatch is how many records come at a time: they have no content here.
const finishedBatch = 1000

// Finished yields the records that are done, the first that became so first,
// without their name and content. With a time, only those that were done then or
// later, by the server's clock. A record that is done never changes again.
func (s *Store) Finished(ctx context.Context, since time.Time) iter.Seq2[Record, error] {
	filter := bson.D{{Key: "status", Value: Done}}
	if !since.IsZero() {
		filter = append(filter, bson.E{Key: "changedAt", Value: bson.D{{Key: "$gte", Value: since}}})
	}
	return read(ctx, func(ctx context.Context) (*mongo.Cursor, error) {
		cursor, err := s.collection.Find(ctx, filter, options.Find().
			SetSort(bson.D{{Key: "changedAt", Value: 1}}).
			SetProjection(bson.D{{Key: "name", Value: 0}, {Key: "content", Value: 0}}).
			SetBatchSize(finishedBatch))
		if err != nil {
			return nil, fmt.Errorf("find finished records: %w", err)
		}
		return cursor, nil
	})
}

// Newest returns when the event of the record that was stored last was sent: as
// the queue is one after the other, no event sent before waits any more. The zero
// time means that there is no record.
func (s *Store) Newest(ctx context.Context) (sentAt time.Time, err error) {
	var r Record
	err = s.collection.FindOne(ctx, bson.D{}, options.FindOne().
		SetSort(bson.D{{Key: "storedAt", Value: -1}, {Key: "_id", Value: -1}}).
		SetProjection(bson.D{{Key: "sentAt", Value: 1}})).Decode(&r)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("find the newest record: %w", err)
	}
	return r.SentAt, nil
}

// Unfinished counts the records that are not done.
func (s *Store) Unfinished(ctx context.Context) (int64, error) {
	n, err := s.collection.CountDocuments(ctx, bson.D{{Key: "status", Value: Processing}})
	if err != nil {
		return 0, fmt.Errorf("count unfinished records: %w", err)
	}
	return n, nil
}
