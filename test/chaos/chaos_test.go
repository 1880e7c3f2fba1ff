package main

import (
	"bytes"
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/queue"
	"keda-p2/services/contract/records"
)

// A run that is short enough for make test, with every kind of failure in it.
func TestNothingIsLostOrDoubled(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), options{
		seed: 1, events: 60, clients: 8, restarts: 1, limit: 5 * time.Minute,
		bin: "../../bin", deploy: "../../deploy", out: &out,
	})
	t.Log(out.String())
	require.NoError(t, err, "run it with make test")
}

func TestTheSeedDecidesThePlan(t *testing.T) {
	t.Parallel()
	one, again, other := newPlan(1, 100, 4, 3), newPlan(1, 100, 4, 3), newPlan(2, 100, 4, 3)
	require.Equal(t, one, again)
	require.Equal(t, one.job(7), again.job(7))
	require.NotEqual(t, one.faults, other.faults)
	require.NotEqual(t, one.job(7), other.job(7))

	for n := range waveLength {
		require.True(t, one.job(one.wave+n).killed)
	}

	require.Len(t, one.faults[0], 3)
	require.True(t, one.faults[0][0].crash, "RabbitMQ is killed, not only restarted")
	for _, faults := range one.faults {
		require.True(t, slices.IsSortedFunc(faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) }))
		require.LessOrEqual(t, faults[len(faults)-1].at, lastFault)
	}
	names := map[string]bool{}
	for _, e := range one.events {
		names[e.Name] = true
	}
	require.Len(t, names, 100)
}

func TestJudge(t *testing.T) {
	t.Parallel()
	a := sent{event: event{ID: "id-a", Name: "a", Content: "x"}, accepted: time.Now()}
	refused := sent{event: event{ID: "id-r", Name: "r", Content: "x"}}
	record := func(id, name, content string, status records.Status) records.Record {
		return records.Record{ID: id, Name: name, Content: content, Status: status}
	}
	done := record("id-a", "a", "x", records.Done)
	letter := queue.DeadLetter{ID: "id-a", Reason: "delivered 5 times and never acknowledged"}
	byWorker := queue.DeadLetter{ID: "id-a", Reason: "boom"}
	for name, c := range map[string]struct {
		stored []records.Record
		dead   []queue.DeadLetter
		want   verdict
	}{
		"done":                        {stored: []records.Record{done}, want: verdict{done: 1}},
		"dead":                        {dead: []queue.DeadLetter{letter}, want: verdict{dead: 1}},
		"dead while it was processed": {stored: []records.Record{record("id-a", "a", "x", records.Processing)}, dead: []queue.DeadLetter{letter}, want: verdict{dead: 1}},
		"failed for good":             {stored: []records.Record{record("id-a", "a", "x", records.Failed)}, dead: []queue.DeadLetter{byWorker}, want: verdict{dead: 1}},
		"failed, and nobody knows":    {stored: []records.Record{record("id-a", "a", "x", records.Processing)}, dead: []queue.DeadLetter{byWorker}, want: verdict{dead: 1, wrong: []string{"id-a"}}},
		"failed, and no dead letter":  {stored: []records.Record{record("id-a", "a", "x", records.Failed)}, want: verdict{lost: []string{"id-a"}, wrong: []string{"id-a"}}},
		"done and dead":               {stored: []records.Record{done}, dead: []queue.DeadLetter{letter}, want: verdict{done: 1, both: 1}},
		"neither":                     {want: verdict{lost: []string{"id-a"}}},
		"never done":                  {stored: []records.Record{record("id-a", "a", "x", records.Processing)}, want: verdict{lost: []string{"id-a"}}},
		"two records of one id":       {stored: []records.Record{done, done}, want: verdict{done: 1, doubled: []string{"id-a"}}},
		"a record under another id":   {stored: []records.Record{done, record("id-b", "a", "x", records.Done)}, want: verdict{done: 1, doubled: []string{"id-a"}, foreign: []string{"id-b"}}},
		"another content":             {stored: []records.Record{record("id-a", "a", "y", records.Done)}, want: verdict{done: 1, wrong: []string{"id-a"}}},
		"never sent":                  {stored: []records.Record{done}, dead: []queue.DeadLetter{{ID: "id-b"}}, want: verdict{done: 1, foreign: []string{"id-b"}}},
		"refused and there":           {stored: []records.Record{done, record("id-r", "r", "x", records.Done)}, want: verdict{done: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := judge([]sent{a, refused}, c.stored, c.dead)
			require.Equal(t, c.want, got)
			require.Equal(t, len(c.want.offenders()) > 0, got.err() != nil)
		})
	}
}
