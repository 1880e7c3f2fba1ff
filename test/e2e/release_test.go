//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestReleaseManifest applies a release's keda-p2.yaml in place of deploy/ and goes on
// with the tutorial.
func TestReleaseManifest(t *testing.T) {
	t.Parallel()
	inOrder(t, []step{
		{"the images are built and pushed", images},
		{"RabbitMQ and MongoDB start", infrastructure},
		{"keda-p2.yaml starts the application", releaseManifest},
		{"five events become five records and five Jobs", fiveEvents},
		{"bad input is refused", badInput},
		{"the article's line without quotes works", unquoted},
		{"an event survives the loss of its pod", podLost},
	})
}

func releaseManifest(t *testing.T, c cluster) {
	var pushed []string
	for _, service := range []string{"complex-app", "processor-job"} {
		manifest, err := os.ReadFile(filepath.Join(c.Dir, "deploy", service+".yaml"))
		require.NoError(t, err)
		reference := regexp.MustCompile(`image: (\S+@sha256:\S+)`).FindSubmatch(manifest)
		require.NotNil(t, reference)
		pushed = append(pushed, string(reference[1]))
	}
	list := filepath.Join(c.Dir, "images.txt")
	require.NoError(t, os.WriteFile(list, []byte(strings.Join(pushed, "\n")+"\n"), 0o600))

	// the working tree's manifests, which name no registry
	tree := filepath.Join(t.TempDir(), "keda-p2")
	copyTree(t, tree)
	copyScript(t, tree, ".ci/release")
	rendered := tutorial.Shell{Dir: tree}.Run(t, ".ci/release", "manifest", "v0.0.0-"+version, os.Getenv("REPO"), list)
	for _, reference := range pushed {
		require.Contains(t, rendered, "image: "+reference+"\n")
	}
	require.NotContains(t, rendered, "kind: Secret", "a release would put its passwords in place of the user's")
	file := filepath.Join(c.Dir, "keda-p2.yaml")
	require.NoError(t, os.WriteFile(file, []byte(rendered), 0o600))
	edit(t, file, "amqp://rabbitmq.default.svc", "amqp://rabbitmq."+c.namespace+".svc")

	c.Run(t, "kubectl", "apply", "-f", "deploy/00-registry-secret.yaml")
	c.Run(t, "kubectl", "apply", "-f", "keda-p2.yaml")
	c.waitForApplication(t)
}

// before is what an upgrade begins with: the release before this one. As there is none
// yet, it is an earlier commit whose queue has the same arguments.
const before = "a537c2b492fd748c4e58c92d9d4d98f961bbe466"

// TestUpgrade applies this version over the one before, while ten Jobs work and messages
// wait: the Jobs finish, and nothing is lost or done twice. The earlier version is brought
// up by test/kind.sh, whose steps beyond kind's own are tried so.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.keepAllJobs(t)
	images(t, c) // this version's first: afterwards there is no time while the Jobs work

	earlier := c
	earlier.Dir = filepath.Join(t.TempDir(), "keda-p2")
	earlier.Env = append(slices.Clone(c.Env), "VERSION=before")
	require.NoError(t, os.Mkdir(earlier.Dir, 0o700))
	archive := exec.CommandContext(t.Context(), "git", "-C", tutorial.Root(t), "archive", "--output", filepath.Join(earlier.Dir, "tree.tar"), before, "deploy", "services", "build-images.sh")
	out, err := archive.CombinedOutput()
	require.NoError(t, err, "commit %s is needed; a shallow clone does not have it (git fetch --unshallow): %s", before, out)
	earlier.Run(t, "tar", "-xf", "tree.tar")
	// the servers are not what is upgraded
	infrastructure := filepath.Join("deploy", "infrastructure")
	require.NoError(t, os.RemoveAll(filepath.Join(earlier.Dir, infrastructure)))
	require.NoError(t, os.CopyFS(filepath.Join(earlier.Dir, infrastructure), os.DirFS(filepath.Join(c.Dir, infrastructure))))
	copyScript(t, earlier.Dir, "test/kind.sh")
	earlier.keepAllJobs(t)
	t.Log(lastLines(earlier.Run(t, "test/kind.sh", "deploy"), 3))
	c.startClient(t)

	names := numbered("event", 12)
	require.Greater(t, len(names), maxJobs)
	c.send(t, names...)
	working := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return len(r) >= maxJobs })
	require.False(t, tutorial.AllDone(working, len(names)), "they were done before the upgrade")

	t.Log(c.Run(t, "kubectl", "apply", "-f", "deploy/"))
	c.waitForApplication(t)
	require.Contains(t, c.Run(t, "kubectl", "exec", "deployment/complex-app", "--", "/service", "--version"), version)
	c.send(t, numbered("later", 3)...)
	after := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, len(names)+3) })
	for _, r := range after {
		require.Equal(t, 1, r.Attempts, "the first Job of %s died", r.Name)
	}
	for _, r := range working {
		require.Equal(t, r.Job, named(after, r.Name).Job)
	}
	c.requireJobs(t, jobs{succeeded: len(after)})
	// a record is done before its message is acknowledged, and RabbitMQ's numbers come later still
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) { require.Zero(collect, c.messages(collect, t.Context())) })
	tutorial.LogTimes(t, after)
}
