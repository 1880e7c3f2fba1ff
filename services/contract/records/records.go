// Package records is the collection in MongoDB that holds one record for each
// event.
package records

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
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
	// URI is a connection string of MongoDB's, for a replica set or a managed server.
	// What it says wins over the other variables. Without a user it says nothing of the login.
	URI        string
	Port       config.Port `default:"27017"`
	DB         string      `default:"sample-db"`
	Collection string      `default:"sample-collection"`
	AuthSource string      `split_words:"true" default:"admin"`
}

// Validate names every problem with the MONGODB_ variables.
func (c Config) Validate() error {
	return errors.Join(
		c.Server.Validate("MONGODB"),
		c.validateURI(),
		config.Check(c.DB != "", "MONGODB_DB: is empty"),
		config.Check(c.Collection != "", "MONGODB_COLLECTION: is empty"),
	)
}

// srvOptions are those that only mongodb+srv may have.
var srvOptions = regexp.MustCompile(`(?i)\bsrv(MaxHosts=\d+|ServiceName=[^&;]+)([&;]|$)`)

// validateURI does not ask the DNS, which may not answer yet, as the driver does for
// mongodb+srv. The driver's errors quote the string, which may have a password anywhere
// when it is wrong: only those of files are shown.
func (c Config) validateURI() error {
	invalid := func(uri string) error {
		if rest, ok := strings.CutPrefix(uri, "mongodb+srv://"); ok {
			uri = "mongodb://" + srvOptions.ReplaceAllString(rest, "")
		}
		return options.Client().ApplyURI(uri).Validate()
	}
	if c.URI == "" {
		return nil
	}
	address, _, _ := strings.Cut(c.URI, "?")
	if strings.Count(address, "@") > 1 || invalid(address) != nil {
		return errors.New("MONGODB_URI: is not like mongodb://user:password@host:27017,host:27017/?option=value, or begins with mongodb+srv:// and has more than a host; write : / ? # @ in user and password as %3A %2F %3F %23 %40")
	}
	err := invalid(c.URI)
	if file, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("MONGODB_URI: %w", file)
	}
	return config.Check(err == nil, "MONGODB_URI: an option after the ? is not valid, or is an authMechanism without user and password before the hosts; MongoDB's manual has them under Connection String Options")
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
	StoredAt   time.Time `bson:"storedAt" json:"storedAt"`                        // by the server's clock
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
	foreign    sync.Once

	// Foreign is called for the first document that is no record. All of those are passed
	// over.
	Foreign func(id, reason string)
}

// Open returns a store. It connects in the background and needs no server yet:
// Ping tells whether there is one.
func Open(c Config, name string) (*Store, error) {
	client, err := Connect(c, name)
	if err != nil {
		return nil, err
	}
	return &Store{client: client, collection: client.Database(c.DB).Collection(c.Collection), Foreign: func(string, string) {}}, nil
}

// Connect returns a client as Open does, for collections of a worker's own.
func Connect(c Config, name string) (*mongo.Client, error) {
	tlsConfig, err := c.TLSConfig()
	if err != nil {
		return nil, err
	}
	// a record counts as stored once it survives a crash of the server and, in a
	// replica set, the election of another primary; what is read is stored like that,
	// whatever the URI says
	o := options.Client().
		SetHosts([]string{net.JoinHostPort(c.Host, string(c.Port))}).
		SetAppName(name).
		SetServerSelectionTimeout(selectionTimeout).
		SetTLSConfig(tlsConfig)
	if c.User != "" {
		// credentials go here and not into a URI, so they need no escaping
		o.SetAuth(options.Credential{Username: c.User, Password: c.Password, PasswordSet: true, AuthSource: c.AuthSource})
	}
	if c.URI != "" {
		if o.ApplyURI(c.URI); tlsConfig != nil && o.TLSConfig.RootCAs == nil {
			o.TLSConfig.RootCAs = tlsConfig.RootCAs // of MONGODB_CA_FILE
		}
	}
	o.SetReadPreference(readpref.Primary()).
		SetReadConcern(readconcern.Majority()).
		SetWriteConcern(&writeconcern.WriteConcern{W: "majority", Journal: new(true)})
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

// Close ends the store's connections. It waits a second for what still uses them.
func (s *Store) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.client.Disconnect(ctx)
}

// CreateIndexes makes the indexes that List and Changed use, unless they are there.
func (s *Store) CreateIndexes(ctx context.Context) error {
	server, err := s.hello(ctx)
	if err != nil {
		return config.ExplainTLS("MONGODB", err)
	}
	o := options.CreateIndexes()
	if server.SetName != "" {
		o.SetCommitQuorumMajority() // by default it waits for a member that is down
	}
	// one at a time: FerretDB 1.24 fails when two of one command exist already
	for _, keys := range []bson.D{
		{{Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}},
		{{Key: "name", Value: 1}, {Key: "storedAt", Value: 1}, {Key: "_id", Value: 1}},
		{{Key: "status", Value: 1}, {Key: "changedAt", Value: -1}},
	} {
		if _, err := s.collection.Indexes().CreateOne(ctx, mongo.IndexModel{Keys: keys}, o); err != nil {
			return fmt.Errorf("create indexes: %w", config.ExplainTLS("MONGODB", err))
		}
	}
	return nil
}

// Begin stores that a Job works on a message. The first delivery adds the
// record, a later one changes its job, attempts and runs only, so that one id is
// one record. ErrDone means that there is nothing left to do.
func (s *Store) Begin(ctx context.Context, m contract.Message, run Run) error {
	work := bson.D{{Key: "status", Value: Processing}, {Key: "job", Value: run.Job}}
	// not $inc and $push: this may be sent twice when the answer is lost
	attempts := bson.E{Key: "$max", Value: bson.D{{Key: "attempts", Value: run.Attempt}}}
	runs := bson.E{Key: "$addToSet", Value: bson.D{{Key: "runs", Value: run}}}
	// No record matches the first update: the upsert adds one, or its _id forbids that.
	// Only so can the server set a time that never changes again.
	_, taken := s.collection.UpdateOne(ctx,
		bson.D{{Key: "_id", Value: m.ID}, {Key: "storedAt", Value: bson.D{{Key: "$exists", Value: false}}}},
		bson.D{
			{Key: "$set", Value: append(bson.D{{Key: "name", Value: m.Name}, {Key: "content", Value: m.Content}, {Key: "sentAt", Value: m.SentAt}}, work...)},
			attempts, runs, {Key: "$currentDate", Value: bson.D{{Key: "storedAt", Value: true}, {Key: "changedAt", Value: true}}},
		}, options.UpdateOne().SetUpsert(true))
	if !mongo.IsDuplicateKeyError(taken) {
		return wrap("store", m.ID, taken)
	}
	again, err := s.update(ctx, "store", m.ID, bson.D{{Key: "$set", Value: work}, attempts, runs})
	if err != nil || again {
		return err
	}
	found, err := s.find(ctx, m.ID)
	switch {
	case errors.Is(err, ErrUnknown):
		err = taken // in a unique index of somebody else's
	case err == nil && found.Status == Done:
		return ErrDone
	case err == nil:
		err = errors.New("it has just changed") // deleted and stored again
	}
	return wrap("store", m.ID, err)
}

// Finish marks the record done. Doing so again changes nothing.
func (s *Store) Finish(ctx context.Context, id string) error {
	_, err := s.update(ctx, "finish", id, bson.D{
		{Key: "$set", Value: bson.D{{Key: "status", Value: Done}, {Key: "finishedAt", Value: time.Now()}}},
		{Key: "$unset", Value: bson.D{{Key: "error", Value: ""}}},
	})
	return err
}

// Fail notes that a job's attempt has failed, and whether another one follows: status is
// Retrying or Failed. A record that is done stays done, and one that another job has
// begun since is that job's.
func (s *Store) Fail(ctx context.Context, id, job string, status Status, reason string) error {
	_, err := s.update(ctx, "fail", id, bson.D{
		{Key: "$set", Value: bson.D{{Key: "status", Value: status}, {Key: "error", Value: contract.Shorten(reason, maxErrorBytes)}}},
	}, bson.E{Key: "job", Value: job})
	return err
}

// update changes a record that is not done, and says whether there is one. The server
// sets the time: the Jobs' clocks may differ, and a reader that goes on from the last one
// that it has seen would miss a record.
func (s *Store) update(ctx context.Context, verb, id string, change bson.D, conditions ...bson.E) (bool, error) {
	result, err := s.collection.UpdateOne(ctx,
		append(bson.D{{Key: "_id", Value: id}, {Key: "status", Value: bson.D{{Key: "$ne", Value: Done}}}}, conditions...),
		append(change, bson.E{Key: "$currentDate", Value: bson.D{{Key: "changedAt", Value: true}}}))
	return err == nil && result.MatchedCount > 0, wrap(verb, id, err)
}

func wrap(verb, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s record %s: %w", verb, id, err)
}
