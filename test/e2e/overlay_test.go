//go:build e2e

package e2e

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// TestOverlay follows docs/production.md: an overlay of one's own on the base in
// deploy/, with servers in another namespace, whose logins are not the tutorial's. The
// servers run as users that their images do not know, as on OpenShift.
func TestOverlay(t *testing.T) {
	t.Parallel()
	servers, c := newCluster(t), newCluster(t)
	const password = `an0ther p@ss"/'\$word`
	upstream := c.repository(t)
	page, err := os.ReadFile(filepath.Join(tutorial.Root(t), "docs", "production.md"))
	require.NoError(t, err)

	images(t, servers)
	edit(t, filepath.Join(servers.Dir, "deploy", "00-secret.yaml"), "RABBITMQ_PASSWORD: 'P@ssw0rd'", "RABBITMQ_PASSWORD: '"+strings.ReplaceAll(password, "'", "''")+"'")
	ofServers := strings.NewReplacer("namespace: team-a", "namespace: "+servers.namespace, "https://gitverse.ru/sedg1l/keda-p2", upstream)
	overlay(t, servers, ofServers.Replace(block(t, page, "# infrastructure/kustomization.yaml\n"))+`
      - {op: add, path: /spec/template/spec/securityContext/runAsUser, value: 1000680000}
      - {op: add, path: /spec/template/spec/securityContext/fsGroup, value: 1000680000}
`)
	servers.Run(t, "kubectl", "apply", "-f", "deploy/00-secret.yaml")
	servers.Run(t, "kubectl", "apply", "-k", "overlay")
	for _, server := range []string{"statefulset/rabbitmq", "statefulset/mongodb"} {
		servers.Run(t, "kubectl", "rollout", "status", server, "--timeout", "5m")
	}

	repo := os.Getenv("REPO")
	ofApplication := strings.NewReplacer("namespace: team-a", "namespace: "+c.namespace, "https://gitverse.ru/sedg1l/keda-p2", upstream,
		"my-registry.example.com", repo, `"1.0"`, version, ".example.com", "."+servers.namespace+".svc")
	overlay(t, c, ofApplication.Replace(block(t, page, "# kustomization.yaml\n")))
	c.shell(t, strings.NewReplacer("=worker\nRABBITMQ_PASSWORD=as it is: no quotes", "=user\nRABBITMQ_PASSWORD="+password,
		"=worker\nMONGODB_PASSWORD=as it is: no quotes", "=root\nMONGODB_PASSWORD=mongo",
		"my-registry.example.com", repo, "puller", quote(os.Getenv("LOGIN")), "=secret", "="+quote(os.Getenv("PASSWORD"))).
		Replace(block(t, page, "# the two files of the Secrets")))
	c.waitForApplication(t)

	c.startClient(t)
	c.send(t, "one", "two")
	records := c.waitForRecords(t, patience, func(r []tutorial.Record) bool { return tutorial.AllDone(r, 2) })
	require.Equal(t, "two", named(records, "two").Name)
	c.requireJobs(t, jobs{succeeded: 2})

	// -f passes the base's file over, and -k brings no Secret
	require.NotContains(t, c.Run(t, "kubectl", "apply", "-f", "deploy/", "--dry-run=client"), "Kustomization")
	require.NotContains(t, c.Run(t, "kubectl", "apply", "-k", "deploy/", "--dry-run=client", "-o", "name"), "secret/")
}

// repository makes a Git repository of the project's copy, for Kustomize to fetch.
func (c cluster) repository(t *testing.T) (address string) {
	t.Helper()
	c.shell(t, `git init -q -b main . && git add deploy && git -c user.name=test -c user.email=test@example.com commit -qm base`)
	return (&url.URL{Scheme: "file", Path: c.Dir}).String()
}

// shell runs lines in the overlay's folder, if there is one.
func (c cluster) shell(t *testing.T, lines string) {
	t.Helper()
	s := c.Shell
	if dir := filepath.Join(s.Dir, "overlay"); isDir(dir) {
		s.Dir = dir
	}
	s.Run(t, "bash", "-euo", "pipefail", "-c", lines)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func overlay(t *testing.T, c cluster, text string) {
	t.Helper()
	require.NoError(t, os.Mkdir(filepath.Join(c.Dir, "overlay"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(c.Dir, "overlay", "kustomization.yaml"), []byte(text), 0o600))
}

// block returns a page's fenced block that begins with a text.
func block(t *testing.T, page []byte, beginning string) string {
	t.Helper()
	found := regexp.MustCompile("(?s)```[a-z]+\n(" + regexp.QuoteMeta(beginning) + ".*?\n)```").FindSubmatch(page)
	require.NotNil(t, found, "no block begins with %q", beginning)
	return string(found[1])
}
