package infra_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"keda-p2/services/sandbox/infra"
)

// FerretDB alone loses most of these changes.
func TestChangesOfADocumentAreAtomic(t *testing.T) {
	db, err := infra.StartFerretDB(t.TempDir())
	require.NoError(t, err)
	defer db.Close()
	client, err := mongo.Connect(options.Client().SetHosts([]string{db.Host + ":" + db.Port}))
	require.NoError(t, err)
	defer client.Disconnect(t.Context())
	counters := client.Database("db").Collection("counters")
	_, err = counters.InsertOne(t.Context(), bson.D{{Key: "_id", Value: "a"}, {Key: "n", Value: 0}})
	require.NoError(t, err)

	const writers, times = 8, 10
	var wait sync.WaitGroup
	failed := make(chan error, writers*times)
	for range writers {
		wait.Go(func() {
			for range times {
				_, err := counters.UpdateOne(t.Context(), bson.D{{Key: "_id", Value: "a"}}, bson.D{{Key: "$inc", Value: bson.D{{Key: "n", Value: 1}}}})
				failed <- err
			}
		})
	}
	wait.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	var counter struct{ N int }
	require.NoError(t, counters.FindOne(t.Context(), bson.D{{Key: "_id", Value: "a"}}).Decode(&counter))
	require.Equal(t, writers*times, counter.N)
}
