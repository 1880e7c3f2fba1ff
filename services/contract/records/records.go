// Package records is the collection in MongoDB that holds one record for each
// event.
package records

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"keda-p2/services/contract"
	"keda-p2/services/contract/config"
)

const (
	// selectionTimeout bounds the search for a server, so that a caller who
	// retries learns soon that there is none.
	selectionTimeout = 3 * time.Second
	closeTimeout     = time.Second
	// maxErrorBytes bounds the error that is kept in a record.
	maxErrorBytes = 1000
)

var (
	// ErrDone is returned by Begin when the event has been processed already.
	ErrDone = errors.New("the record is done already")
	// ErrUnknown is returned by List when there is no record with the given id.
	ErrUnknown = errors.New("there is no record with this id")
)

// Status says how far an event is.
type Status string

// The states of a record.
const (
	Processing Status = "processing" // a Job works on it, or was killed while it did
	Retrying   Status = "retrying"   // an attempt failed, the next one follows
	Failed     Status = "failed"     // given up: its message is a dead letter
	Done       Status = "done"
)

// Config says where MongoDB is. Its variables begin with MONGODB_. An empty
// user means a server without logins.
type Config struct {
	config.Server
	Port       config.Port `default:"27017"`
	DB         string      `default:"sample-db"`
	Collection string      `default:"sample-collection"`
	AuthSource string      `split_words:"true" default:"admin"`
}

// Validate names every problem with the MONGODB_ variables.
func (c Config) Validate() error {
	problems := []error{c.Server.Validate("MONGODB")}
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
	Job        string    `bson:"job" json:"job"`                         // the pod that last worked on it
	Attempts   int       `bson:"attempts" json:"attempts"`               // at its message, see queue.Delivery
	Error      string    `bson:"error,omitempty" json:"error,omitempty"` // of the last attempt that failed
	SentAt     time.Time `bson:"sentAt" json:"sentAt,omitzero"`
	StoredAt   time.Time `bson:"storedAt" json:"storedAt"`
	FinishedAt time.Time `bson:"finishedAt,omitempty" json:"finishedAt,omitzero"` // when it was done
	Runs       []Run     `bson:"runs,omitempty" json:"-"`                         // none in a record of an earlier version
	ChangedAt  time.Time `bson:"changedAt,omitempty" json:"-"`                    // by the server's clock
}

// Run is one Job's work on a message. A record has one for each attempt that got
// as far as storing, in no certain order.
type Run struct {
	Job       string    `bson:"job" json:"job"`             // the pod
	Attempt   int       `bson:"attempt" json:"attempt"`     // from 1; two runs have the same one when a Job was told to stop
	StartedAt time.Time `bson:"startedAt" json:"startedAt"` // when the Job began to look for a message
	ClaimedAt time.Time `bson:"claimedAt" json:"claimedAt"` // when it got this one
}

// Store reads and writes records.
type Store struct {
	client     *mongo.Client
	collection *mongo.Collection
}

// Open returns a store. It connects in the background and needs no server yet:
// Ping tells whether there is one.
func Open(c Config, name string) (*Store, error) {
	client, err := Connect(c, name)
	if err != nil {
		return nil, err
	}
	return &Store{client: client, collection: client.Database(c.DB).Collection(c.Collection)}, nil
}

// Connect returns a client as Open does, for collections of a worker's own.
func Connect(c Config, name string) (*mongo.Client, error) {
	tlsConfig, err := c.TLSConfig()
	if err != nil {
		return nil, err
	}
	// a record counts as stored once it survives a crash of the server and, in a
	// replica set, the election of another primary; what is read is stored like that
	journaled := true
	o := options.Client().
		SetHosts([]string{net.JoinHostPort(c.Host, string(c.Port))}).
		SetAppName(name).
		SetServerSelectionTimeout(selectionTimeout).
		SetReadConcern(readconcern.Majority()).
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
	return client, nil
}

// Ping returns nil when the server answers and has let us in.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx, nil); err != nil {
		return fmt.Errorf("MongoDB: %w", config.ExplainTLS("MONGODB", err))
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
			return fmt.Errorf("create indexes: %w", config.ExplainTLS("MONGODB", err))
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
		found, err := s.find(ctx, m.ID)
		if err != nil {
			return err
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
	return s.update(ctx, "finish", id, bson.D{
		{Key: "$set", Value: bson.D{{Key: "status", Value: Done}, {Key: "finishedAt", Value: time.Now()}}},
		{Key: "$unset", Value: bson.D{{Key: "error", Value: ""}}},
		changedNow(),
	})
}

// Fail notes that an attempt has failed, and whether another one follows: status is
// Retrying or Failed. A record that is done stays done.
func (s *Store) Fail(ctx context.Context, id string, status Status, reason string) error {
	return s.update(ctx, "fail", id, bson.D{
		{Key: "$set", Value: bson.D{{Key: "status", Value: status}, {Key: "error", Value: shorten(reason)}}},
		changedNow(),
	})
}

func (s *Store) update(ctx context.Context, verb, id string, change bson.D) error {
	_, err := s.collection.UpdateOne(ctx,
		bson.D{{Key: "_id", Value: id}, {Key: "status", Value: bson.D{{Key: "$ne", Value: Done}}}}, change)
	return wrap(verb, id, err)
}

func shorten(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxErrorBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxErrorBytes], "") + "…"
}

// changedNow lets the server note the time: the Jobs' clocks may differ, and a reader
// that asks for the changes since a time would miss a record.
func changedNow() bson.E {
	return bson.E{Key: "$currentDate", Value: bson.D{{Key: "changedAt", Value: true}}}
}

func wrap(verb, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s record %s: %w", verb, id, err)
}
