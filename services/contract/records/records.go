// Package records is the collection in MongoDB that holds one record for each
// event.
package records

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"keda-p2/services/contract"
	"keda-p2/services/contract/config"
)

const (
	// selectionTimeout bounds the search for a server, so that a caller who
	// retries learns soon that there is none.
	selectionTimeout = 3 * time.Second
	// answerTimeout bounds the wait for each answer of List: a connection that
	// has fallen silent would keep it waiting for minutes.
	answerTimeout = 10 * time.Second
	closeTimeout  = time.Second
	// listBatch and changedBatch bound the memory that List and Changed take: by
	// default MongoDB sends up to 16 MB at a time.
	listBatch    = 1000
	changedBatch = 50
	// chunkBytes is how much one goroutine decodes, and chunksAhead how many of them
	// there are while the caller works on the chunk before.
	chunkBytes  = 64 << 10
	chunksAhead = 4
)

var (
	// ErrDone is returned by Begin when the event has been processed already.
	ErrDone = errors.New("the record is done already")
	// ErrUnknown is returned by List when there is no record with the given id.
	ErrUnknown = errors.New("there is no record with this id")
)

// Status says how far an event is.
type Status string

// The two states of a record.
const (
	Processing Status = "processing"
	Done       Status = "done"
)

// Config says where MongoDB is. Its variables begin with MONGODB_. An empty
// user means a server without logins.
type Config struct {
	config.Server
	Port       string `default:"27017"`
	DB         string `default:"sample-db"`
	Collection string `default:"sample-collection"`
	AuthSource string `split_words:"true" default:"admin"`
}

// Validate names every problem with the MONGODB_ variables.
func (c Config) Validate() error {
	problems := []error{c.Server.Validate("MONGODB", c.Port)}
	if c.DB == "" {
		problems = append(problems, errors.New("MONGODB_DB: is empty"))
	}
	if c.Collection == "" {
		problems = append(problems, errors.New("MONGODB_COLLECTION: is empty"))
	}
	return errors.Join(problems...)
}

// Record is what is stored of an event. MongoDB keeps times in milliseconds.
type Record struct {
	ID         string    `bson:"_id" json:"id"` // the message's id
	Name       string    `bson:"name" json:"name"`
	Content    string    `bson:"content" json:"content"`
	Status     Status    `bson:"status" json:"status"`
	Job        string    `bson:"job" json:"job"`           // the pod that last worked on it
	Attempts   int       `bson:"attempts" json:"attempts"` // deliveries of its message
	SentAt     time.Time `bson:"sentAt" json:"sentAt,omitzero"`
	StoredAt   time.Time `bson:"storedAt" json:"storedAt"`
	FinishedAt time.Time `bson:"finishedAt,omitempty" json:"finishedAt,omitzero"`
	Runs       []Run     `bson:"runs,omitempty" json:"-"`      // none in a record of an earlier version
	ChangedAt  time.Time `bson:"changedAt,omitempty" json:"-"` // by the server's clock
}

// Run is one Job's work on a message. A record has one for each attempt that got
// as far as storing, in no certain order.
type Run struct {
	Job       string    `bson:"job"`       // the pod
	Attempt   int       `bson:"attempt"`   // this delivery's number, from 1
	StartedAt time.Time `bson:"startedAt"` // when the Job began to look for a message
	ClaimedAt time.Time `bson:"claimedAt"` // when it got this one
}

// Store reads and writes records.
type Store struct {
	client     *mongo.Client
	collection *mongo.Collection
}

// Open returns a store. It connects in the background and needs no server yet:
// Ping tells whether there is one.
func Open(c Config, name string) (*Store, error) {
	tlsConfig, err := c.TLSConfig()
	if err != nil {
		return nil, err
	}
	// a record counts as stored once it survives a crash of the server
	journaled := true
	o := options.Client().
		SetHosts([]string{net.JoinHostPort(c.Host, c.Port)}).
		SetAppName(name).
		SetServerSelectionTimeout(selectionTimeout).
		SetWriteConcern(&writeconcern.WriteConcern{W: "majority", Journal: &journaled})
	if tlsConfig != nil {
		o.SetTLSConfig(tlsConfig)
	}
	if c.User != "" {
		// credentials go here and not into a URI, so they need no escaping
		o.SetAuth(options.Credential{Username: c.User, Password: c.Password, PasswordSet: true, AuthSource: c.AuthSource})
	}
	client, err := mongo.Connect(o)
	if err != nil {
		return nil, fmt.Errorf("MongoDB: %w", err)
	}
	return &Store{client: client, collection: client.Database(c.DB).Collection(c.Collection)}, nil
}

// Ping returns nil when the server answers and has let us in.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx, nil); err != nil {
		return fmt.Errorf("MongoDB: %w", err)
	}
	return nil
}

// Close ends the store's connections.
func (s *Store) Close(ctx context.Context) error { return s.client.Disconnect(ctx) }

// CreateIndexes makes the indexes that List and Changed use, unless they are there.
func (s *Store) CreateIndexes(ctx context.Context) error {
	// one at a time: FerretDB 1.24 fails when two of one command exist already
	for _, keys := range []bson.D{
		{{Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}},
		{{Key: "name", Value: 1}, {Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}},
		{{Key: "status", Value: 1}, {Key: "changedAt", Value: -1}},
	} {
		if _, err := s.collection.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: keys}); err != nil {
			return fmt.Errorf("create indexes: %w", err)
		}
	}
	return nil
}

// Begin stores that a Job works on a message. The first delivery adds the
// record, a later one changes its job, attempts and runs only, so that one id is
// one record. ErrDone means that there is nothing left to do.
func (s *Store) Begin(ctx context.Context, m contract.Message, run Run) error {
	for {
		_, err := s.collection.UpdateOne(ctx,
			// A record that is done does not match. The upsert then tries to add
			// it again, which its _id forbids.
			bson.D{{Key: "_id", Value: m.ID}, {Key: "status", Value: bson.D{{Key: "$ne", Value: Done}}}},
			bson.D{
				{Key: "$setOnInsert", Value: bson.D{
					{Key: "name", Value: m.Name},
					{Key: "content", Value: m.Content},
					{Key: "sentAt", Value: m.SentAt},
					{Key: "storedAt", Value: time.Now()},
				}},
				{Key: "$set", Value: bson.D{{Key: "status", Value: Processing}, {Key: "job", Value: run.Job}}},
				// not $inc and $push: this may be sent twice when the answer is lost
				{Key: "$max", Value: bson.D{{Key: "attempts", Value: run.Attempt}}},
				{Key: "$addToSet", Value: bson.D{{Key: "runs", Value: run}}},
				changedNow(),
			},
			options.UpdateOne().SetUpsert(true))
		if !mongo.IsDuplicateKeyError(err) {
			return wrap("store", m.ID, err)
		}
		var found Record
		if err := s.collection.FindOne(ctx, bson.D{{Key: "_id", Value: m.ID}}).Decode(&found); err != nil {
			return wrap("read", m.ID, err)
		}
		if found.Status == Done {
			return ErrDone
		}
		// Another Job with the same message added it between our match and our
		// insert. Now it matches.
	}
}

// Finish marks the record done. Doing so again changes nothing.
func (s *Store) Finish(ctx context.Context, id string) error {
	_, err := s.collection.UpdateOne(ctx,
		bson.D{{Key: "_id", Value: id}, {Key: "status", Value: Processing}},
		bson.D{
			{Key: "$set", Value: bson.D{{Key: "status", Value: Done}, {Key: "finishedAt", Value: time.Now()}}},
			changedNow(),
		})
	return wrap("finish", id, err)
}

// changedNow lets the server note the time: the Jobs' clocks may differ, and
// whoever asks for what has changed since would miss a record.
func changedNow() bson.E {
	return bson.E{Key: "$currentDate", Value: bson.D{{Key: "changedAt", Value: true}}}
}

func wrap(verb, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s record %s: %w", verb, id, err)
}

// Jobs returns the jobs of the records with the given ids, by id.
func (s *Store) Jobs(ctx context.Context, ids []string) (map[string]string, error) {
	cursor, err := s.collection.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
	if err != nil {
		return nil, fmt.Errorf("find jobs: %w", err)
	}
	var found []Record
	if err := cursor.All(ctx, &found); err != nil {
		return nil, fmt.Errorf("find jobs: %w", err)
	}
	jobs := make(map[string]string, len(found))
	for _, r := range found {
		jobs[r.ID] = r.Job
	}
	return jobs, nil
}

// Query selects records.
type Query struct {
	Name  string // only records with this name, unless empty
	After string // only records stored after the one with this id, unless empty
	Limit int64  // at most so many, unless 0
}

// List yields the matching records in the order in which they were stored, as
// MongoDB delivers them, without their runs and changes. After an error it yields
// nothing more.
func (s *Store) List(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return read(ctx, func(ctx context.Context) (*mongo.Cursor, error) { return s.find(ctx, q) })
}

// Changed yields the records that changed after the given time by the server's
// clock, the last change first, at most limit. It yields only those with one of
// the given states: name them all to use the index.
func (s *Store) Changed(ctx context.Context, after time.Time, limit int64, states ...Status) iter.Seq2[Record, error] {
	filter := bson.D{{Key: "status", Value: bson.D{{Key: "$in", Value: states}}}}
	if !after.IsZero() {
		filter = append(filter, bson.E{Key: "changedAt", Value: bson.D{{Key: "$gt", Value: after}}})
	}
	return read(ctx, func(ctx context.Context) (*mongo.Cursor, error) {
		cursor, err := s.collection.Find(ctx, filter, options.Find().
			SetSort(bson.D{{Key: "changedAt", Value: -1}}).
			SetLimit(limit).
			SetBatchSize(changedBatch))
		if err != nil {
			return nil, fmt.Errorf("find changed records: %w", err)
		}
		return cursor, nil
	})
}

// Count returns how many records there are. It looks at none of them.
func (s *Store) Count(ctx context.Context) (int64, error) {
	n, err := s.collection.EstimatedDocumentCount(ctx)
	if err != nil {
		return 0, fmt.Errorf("count records: %w", err)
	}
	return n, nil
}

// chunk is some documents, and once they are decoded the records in them and the
// error that came after those.
type chunk struct {
	documents []bson.Raw
	bytes     int
	decoded   chan struct{} // closed once they are
	records   []Record
	err       error
}

func newChunk() *chunk { return &chunk{decoded: make(chan struct{})} }

func (c *chunk) add(document bson.Raw) {
	c.documents = append(c.documents, bytes.Clone(document)) // it is the cursor's own
	c.bytes += len(document)
}

func (c *chunk) decode() {
	defer close(c.decoded)
	c.records = make([]Record, len(c.documents))
	for i, document := range c.documents {
		// cursor.Decode would allocate a reader of 4 KiB for each
		if err := bson.Unmarshal(document, &c.records[i]); err != nil {
			c.records, c.err = c.records[:i], fmt.Errorf("decode a record: %w", err)
			return
		}
	}
}

// read yields what the cursor that open returns delivers. It reads ahead: while the
// caller works on some records, the next ones are fetched and decoded, which takes
// longer than all the rest.
func read(ctx context.Context, open func(context.Context) (*mongo.Cursor, error)) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		reading, cancel := context.WithCancel(ctx)
		chunks := make(chan *chunk, chunksAhead)
		go func() {
			defer close(chunks)
			if err := readChunks(reading, open, chunks); err != nil {
				c := newChunk()
				c.err = err
				c.decode()
				send(reading, chunks, c)
			}
		}()
		defer func() {
			cancel()
			for range chunks { // until the cursor is closed
			}
		}()
		for c := range chunks {
			<-c.decoded
			for _, r := range c.records {
				if !yield(r, nil) {
					return
				}
			}
			if c.err != nil {
				yield(Record{}, c.err)
				return
			}
		}
		if ctx.Err() != nil { // the rest would look like none
			yield(Record{}, fmt.Errorf("read records: %w", context.Cause(ctx)))
		}
	}
}

func readChunks(ctx context.Context, open func(context.Context) (*mongo.Cursor, error), chunks chan<- *chunk) error {
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	cursor, err := open(limited)
	cancel()
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = cursor.Close(ctx) // without a server it is closed there already
	}()
	next := func() bool {
		if cursor.RemainingBatchLength() > 0 {
			return cursor.Next(ctx) // it is here already
		}
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		return cursor.Next(ctx)
	}
	for c := newChunk(); next(); {
		c.add(cursor.Current)
		if c.bytes >= chunkBytes || cursor.RemainingBatchLength() == 0 {
			go c.decode()
			if !send(ctx, chunks, c) {
				return nil
			}
			c = newChunk()
		}
	}
	if err := cursor.Err(); err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	return nil
}

// send says whether the reader still wants it.
func send(ctx context.Context, chunks chan<- *chunk, c *chunk) bool {
	select {
	case chunks <- c:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Store) find(ctx context.Context, q Query) (*mongo.Cursor, error) {
	filter := bson.D{}
	if q.Name != "" {
		filter = append(filter, bson.E{Key: "name", Value: q.Name})
	}
	if q.After != "" {
		var last Record
		err := s.collection.FindOne(ctx, bson.D{{Key: "_id", Value: q.After}}).Decode(&last)
		if errors.Is(err, mongo.ErrNoDocuments) {
			return nil, fmt.Errorf("%w: %s", ErrUnknown, q.After)
		}
		if err != nil {
			return nil, wrap("read", q.After, err)
		}
		// the first condition lets the index skip what comes before
		filter = append(filter,
			bson.E{Key: "storedAt", Value: bson.D{{Key: "$gte", Value: last.StoredAt}}},
			bson.E{Key: "$or", Value: bson.A{
				bson.D{{Key: "storedAt", Value: bson.D{{Key: "$gt", Value: last.StoredAt}}}},
				bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: last.ID}}}},
			}})
	}
	cursor, err := s.collection.Find(ctx, filter, options.Find().
		SetSort(bson.D{{Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}}).
		SetProjection(bson.D{{Key: "runs", Value: 0}, {Key: "changedAt", Value: 0}}).
		SetLimit(q.Limit))
	if err != nil {
		return nil, fmt.Errorf("find records: %w", err)
	}
	cursor.SetBatchSize(listBatch) // the first one stays small, and is here sooner
	return cursor, nil
}
