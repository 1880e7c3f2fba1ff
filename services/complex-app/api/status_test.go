package api_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	stored := []records.Record{
		{ID: "1", Status: records.Done, Job: "a", StoredAt: at, ChangedAt: at},
		{ID: "2", Status: records.Processing, Job: "b", StoredAt: at, ChangedAt: at},
	}
	for name, c := range map[string]struct {
		rabbitMQ, alarm, mongoDB error
		want                     string
	}{
		"both are there": {want: `{"rabbitMQ":"up","mongoDB":"up","ready":3,"dead":1,"records":2,"inWork":1,"jobs":1}`},
		"an alarm":       {alarm: errAway, want: `{"rabbitMQ":"down","mongoDB":"up","ready":3,"dead":1,"records":2,"inWork":1,"jobs":1}`},
		"no RabbitMQ":    {rabbitMQ: errAway, want: `{"rabbitMQ":"down","mongoDB":"up","ready":null,"dead":null,"records":2,"inWork":1,"jobs":1}`},
		"no MongoDB":     {mongoDB: errAway, want: `{"rabbitMQ":"up","mongoDB":"down","ready":3,"dead":1,"records":null,"inWork":null,"jobs":null}`},
		"neither":        {rabbitMQ: errAway, mongoDB: errAway, want: `{"rabbitMQ":"down","mongoDB":"down","ready":null,"dead":null,"records":null,"inWork":null,"jobs":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &fakeDeadLetters{n: 3, dead: []queue.DeadLetter{{ID: "3"}}, err: c.rabbitMQ}
			url := serveAll(t, &fakePublisher{notReady: c.alarm}, &fakeStore{records: stored, ping: c.mongoDB}, d)
			a := request(t, http.MethodGet, url+"/status", "", "")
			require.Equal(t, http.StatusOK, a.status)
			var got map[string]any
			require.NoError(t, json.Unmarshal([]byte(a.body), &got))
			require.Contains(t, got, "time")
			delete(got, "time")
			body, err := json.Marshal(got)
			require.NoError(t, err)
			require.JSONEq(t, c.want, string(body))
		})
	}
}
