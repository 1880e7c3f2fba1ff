//go:build e2e

package e2e

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/services/contract/records"
	"keda-p2/test/tutorial"
)

// TestWorkThatFails lets the work of every attempt fail: with an error, for good, or by
// a panic. On RabbitMQ 4.3 the message is held back before its next attempt, and KEDA
// must not start a Job for it meanwhile.
func TestWorkThatFails(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"the application starts", failing},
		{"each attempt has one Job, and each message ends as a dead letter", eachAttemptOneJob},
	})
}

func failing(t *testing.T, c cluster) {
	c.keepAllJobs(t)
	edit(t, c.scaledJob(), "value: 20s\n", "value: 1s\n")
	edit(t, c.scaledJob(), "value: \"0\"\n", "value: \"1\"\n")
	application(t, c)
	c.startClient(t)
}

func eachAttemptOneJob(t *testing.T, c cluster) {
	const maxAttempts = 5
	names := []string{"fails1", "fails2", "fails3", "fails4", "fails5", "fails6", "fails7", "fails8"}
	c.send(t, names...)
	found := c.waitForRecords(t, patience, func(found []tutorial.Record) bool {
		failed := slices.DeleteFunc(slices.Clone(found), func(r tutorial.Record) bool { return r.Status != string(records.Failed) })
		return len(failed) == len(names)
	})
	attempts := 0
	for _, r := range found {
		attempts += r.Attempts
		require.LessOrEqual(t, r.Attempts, maxAttempts)
	}
	out, err := c.curl(t.Context(), "--fail", service+"/dead-letters")
	require.NoError(t, err)
	var dead []struct {
		ID, Reason string
		Attempts   int
	}
	require.NoError(t, json.Unmarshal([]byte(out), &dead))
	require.Len(t, dead, len(names))
	for _, d := range dead {
		if d.Attempts < maxAttempts {
			require.Contains(t, d.Reason, "for good")
		} else {
			require.Contains(t, d.Reason, "the stand-in was told to")
		}
	}
	c.requireJobs(t, jobs{failed: attempts})
	t.Logf("%d messages, %d attempts, as many Jobs", len(names), attempts)
}
