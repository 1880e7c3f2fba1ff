package failures_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	_ "modernc.org/sqlite"

	"keda-p2/services/contract/config"
	"keda-p2/services/contract/records"
	"keda-p2/services/sandbox/infra"
)

func TestMongoDBIsNotThereAtTheStart(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	linked, l := databaseLink(t, db)
	l.cut()
	app := startApp(t, q, linked)
	app.sendUntilAccepted(t, "the-event") // it needs no database
	require.Equal(t, http.StatusOK, app.answers("/readyz"))
	require.Equal(t, http.StatusServiceUnavailable, app.answers("/data"))

	require.Equal(t, 1, startJob(t, "too early", q, linked, "RETRY_TIMEOUT=1s").exit(t))
	j := startJob(t, "job", q, linked)
	eventually(t, func() bool { return j.logged("will try again") }, "the Job tries")
	require.False(t, j.claimed())
	requireQueues(t, q, 1, 0)

	l.mend(t)
	require.Zero(t, j.exit(t))
	requireDone(t, db, "job", 1)
	app.eventually(t, "/data", http.StatusOK)
	eventually(t, func() bool { return len(indexes(t, db)) == 4 }, "complex-app has made its indexes")
}

// indexes returns those of the collection, that of _id included.
func indexes(t *testing.T, db records.Config) []mongo.IndexSpecification {
	t.Helper()
	client, err := records.Connect(db, t.Name())
	require.NoError(t, err)
	defer client.Disconnect(context.Background()) //nolint:errcheck // nothing is in flight
	found, err := client.Database(db.DB).Collection(db.Collection).Indexes().ListSpecifications(t.Context())
	if err != nil { // the collection is not there yet
		return nil
	}
	return found
}

// MongoDB goes away at a step of processor-job, in one of several ways.
func TestMongoDBGoesAway(t *testing.T) {
	t.Parallel()
	for step, match := range map[string]string{"when it stores": storing, "while it works": "", "when it marks as done": marking} {
		for _, how := range []struct {
			name   string
			goAway func(t *testing.T, l *link)
			comes  bool // back, while the Job tries
		}{
			{"for a moment", func(_ *testing.T, l *link) { l.cut() }, true},
			{"for too long", func(_ *testing.T, l *link) { l.cut() }, false},
			{"silently for a moment", func(t *testing.T, l *link) { l.stall(t) }, true},
			{"silently for too long", func(t *testing.T, l *link) { l.stall(t) }, false},
		} {
			t.Run(step+" "+how.name, func(t *testing.T) {
				t.Parallel()
				q, db := servers(t)
				publish(t, q, event("id-1"))
				linked, l := databaseLink(t, db)
				retry := "RETRY_TIMEOUT=2m"
				if !how.comes {
					retry = "RETRY_TIMEOUT=8s"
				}
				var j *running
				if match == "" {
					j = startJob(t, "first", q, linked, retry, "PROCESSING_TIME=10s")
					eventually(t, func() bool { return j.logged("stored, working") }, "it works")
				} else {
					request := l.hold(t, up, match)
					j = startJob(t, "first", q, linked, retry)
					eventually(t, request.held.Load, "it gets there")
				}
				how.goAway(t, l)
				if how.comes {
					require.Never(t, func() bool { return status(db) == records.Done }, time.Second, 5*tick)
					l.release()
					if !l.proxy.Enabled {
						l.mend(t)
					}
					require.Zero(t, j.exit(t))
					requireDone(t, db, "first", 1)
					requireQueues(t, q, 0, 0)
					return
				}
				require.Equal(t, 1, j.exit(t))
				require.Contains(t, j.Tail(1), "gave up after 8s")
				requireQueues(t, q, 1, 0)
				require.Zero(t, startJob(t, "second", q, db).exit(t))
				requireDone(t, db, "second", secondAttempt(t, q))
				requireQueues(t, q, 0, 0)
			})
		}
	}
}

func TestMongoDBAnswersSlowly(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	linked, l := databaseLink(t, db)
	l.add(t, down, "latency", map[string]int{"latency": 700, "jitter": 300})
	app := startApp(t, q, linked)
	app.sendUntilAccepted(t, "the-event")
	require.Zero(t, startJob(t, "job", q, linked).exit(t))
	requireDone(t, db, "job", 1)
	require.Equal(t, http.StatusOK, app.answers("/data"))
}

// MongoDB takes connections and answers nothing. Each request must end all the
// same.
func TestMongoDBFallsSilent(t *testing.T) {
	t.Parallel()
	q, db := servers(t)
	publish(t, q, event("id-1"))
	linked, l := databaseLink(t, db)
	app := startApp(t, q, linked)
	app.eventually(t, "/data", http.StatusOK)
	l.stall(t)
	began := time.Now()
	require.Equal(t, http.StatusServiceUnavailable, app.answers("/data"))
	t.Logf("/data answered after %s", time.Since(began))
	require.Less(t, time.Since(began), 10*time.Second+slack)
	require.Equal(t, 1, startJob(t, "first", q, linked, "RETRY_TIMEOUT=1s").exit(t))
	l.release()
	app.eventually(t, "/data", http.StatusOK)
	require.Zero(t, startJob(t, "second", q, linked).exit(t))
	requireDone(t, db, "second", 1)
}

// One connection has died without a word, and MongoDB would answer on a new one.
func TestAConnectionToMongoDBDies(t *testing.T) {
	t.Parallel()
	for step, match := range map[string]string{"when it stores": storing, "when it marks as done": marking} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			q, db := servers(t)
			publish(t, q, event("id-1"))
			linked, l := databaseLink(t, db)
			l.add(t, up, holdType, map[string]any{"Match": match, "Once": true, "Deaf": true})
			began := time.Now()
			require.Zero(t, startJob(t, "job", q, linked, "RETRY_TIMEOUT=2m").exit(t))
			t.Logf("done after %s", time.Since(began))
			require.Less(t, time.Since(began), 40*time.Second)
			requireDone(t, db, "job", 1)
		})
	}
}

// A disk that is full, or anything else that makes MongoDB refuse to write.
func TestMongoDBRefusesToWrite(t *testing.T) {
	t.Parallel()
	q, _ := servers(t)
	dir := t.TempDir()
	server, err := infra.StartFerretDB(dir)
	require.NoError(t, err)
	t.Cleanup(server.Close)
	db := records.Config{Port: config.Port(server.Port), DB: "db", Collection: "c", AuthSource: "admin"}
	db.Host = server.Host

	for verb, step := range map[string]string{"INSERT": "store record", "UPDATE": "finish record"} {
		t.Run(verb, func(t *testing.T) {
			id := rand.Text()
			// the collection is made with its first record
			publish(t, q, event("before "+id))
			require.Zero(t, startJob(t, "before", q, db).exit(t))
			allow := refuse(t, filepath.Join(dir, "db.sqlite"), verb)

			publish(t, q, event(id))
			j := startJob(t, "first", q, db, "RETRY_TIMEOUT=5s")
			require.Equal(t, 1, j.exit(t))
			require.Contains(t, j.Tail(1), "gave up after 5s: "+step)
			requireQueues(t, q, 1, 0)

			j = startJob(t, "second", q, db, "RETRY_TIMEOUT=1m")
			eventually(t, func() bool { return j.logged("will try again") }, "it tries")
			allow()
			require.Zero(t, j.exit(t))
			requireQueues(t, q, 0, 0)
			found := all(t, db)
			last := found[len(found)-1]
			require.Equal(t, id, last.ID)
			require.Equal(t, records.Done, last.Status)
			require.Equal(t, secondAttempt(t, q), last.Attempts)
		})
	}
}

// refuse makes the database's file refuse one kind of statement, as a full disk
// would, until the returned function is called.
func refuse(t *testing.T, file, verb string) (allow func()) {
	t.Helper()
	raw, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(10000)")
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	var table string
	require.NoError(t, raw.QueryRowContext(t.Context(), `SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'c\_%' ESCAPE '\'`).Scan(&table))
	run := func(statement string) {
		_, err := raw.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	run(fmt.Sprintf(`CREATE TRIGGER full BEFORE %s ON %q BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END`, verb, table))
	return func() { run("DROP TRIGGER full") }
}

// MongoDB goes away while GET /data is written: no client may take a part for
// the whole.
func TestMongoDBGoesAwayHalfWayThroughData(t *testing.T) {
	t.Parallel()
	const count = 400 // MongoDB's first batch has 101
	q, db := servers(t)
	many := make([]records.Record, count)
	for i := range many {
		many[i] = records.Record{ID: fmt.Sprintf("id-%03d", i), Name: "name", Content: strings.Repeat("x", 1000), Status: records.Done, StoredAt: time.Now()}
	}
	client, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + net.JoinHostPort(db.Host, string(db.Port))))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	_, err = client.Database(db.DB).Collection(db.Collection).InsertMany(t.Context(), many)
	require.NoError(t, err)
	for name, fail := range map[string]func(t *testing.T, l *link) (meanwhile func()){
		"the connection is cut": func(t *testing.T, l *link) func() {
			l.add(t, down, "limit_data", map[string]int{"bytes": 250_000})
			return nil
		},
		"it falls silent and then ends": func(t *testing.T, l *link) func() {
			h := l.hold(t, down, "id-200")
			return func() {
				eventually(t, h.held.Load, "half of it is through")
				l.cut()
			}
		},
		"it falls silent": func(t *testing.T, l *link) func() {
			l.hold(t, down, "id-200")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			linked, l := databaseLink(t, db)
			app := startApp(t, q, linked)
			dataOf(t, app, count)
			meanwhile := fail(t, l)
			client := http.Client{Timeout: patience}
			began := time.Now()
			response, err := client.Get("http://" + app.addr + "/data")
			require.NoError(t, err)
			defer response.Body.Close()
			require.Equal(t, http.StatusOK, response.StatusCode, "the answer has begun")
			if meanwhile != nil {
				go meanwhile()
			}
			body, err := io.ReadAll(response.Body)
			t.Logf("ended after %s and %d bytes: %v", time.Since(began), len(body), err)
			require.Error(t, err, "the client's library says that it is not complete")
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.NotEmpty(t, body)
			require.False(t, json.Valid(body))

			l.release()
			if !l.proxy.Enabled {
				l.mend(t)
			}
			app.eventually(t, "/data", http.StatusOK)
			dataOf(t, app, count)
		})
	}
}

// dataOf waits until GET /data shows so many records, and returns them.
func dataOf(t *testing.T, app *running, want int) (found []records.Record) {
	t.Helper()
	eventually(t, func() bool {
		response, err := http.Get("http://" + app.addr + "/data")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		found = nil
		return response.StatusCode == http.StatusOK && json.NewDecoder(response.Body).Decode(&found) == nil && len(found) == want
	}, "GET /data shows all records")
	return found
}
