//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestTwoNamespaces deploys the project twice, side by side. What they must not share
// is the broker that KEDA asks: it runs in a namespace of its own, so an address
// without the deployment's namespace would start one's Jobs for the other's messages.
func TestTwoNamespaces(t *testing.T) {
	t.Parallel()
	events := map[string]int{"red": 3, "blue": 5}
	clusters := map[string]cluster{}
	for team := range events {
		c := newCluster(t)
		clusters[team] = c
		images(t, c)
		edit(t, c.scaledJob(), "value: 20s\n", "value: 1s\n")
		infrastructure(t, c)
		application(t, c)
		c.startClient(t)
	}
	require.NotEqual(t, clusters["red"].namespace, clusters["blue"].namespace)
	for team, n := range events {
		clusters[team].send(t, numbered(team, n)...)
	}
	for team, n := range events {
		records := clusters[team].waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, n) })
		for _, r := range records {
			require.Truef(t, strings.HasPrefix(r.Name, team), "%s has %s", team, r.Name)
			require.Equal(t, 1, r.Attempts)
		}
	}
	for team, n := range events {
		clusters[team].requireJobs(t, jobs{succeeded: n})
	}
}
