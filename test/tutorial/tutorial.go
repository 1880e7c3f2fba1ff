// Package tutorial is what the tests of the whole system share: the tutorial's
// five events, the records that they must become, and ways to run a program and
// to wait.
package tutorial

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Events is how many events the tutorial sends: record1 with content1, and so on.
const Events = 5

// ProcessingTime is how long one event's work takes: PROCESSING_TIME in
// deploy/processor-job.yaml.
const ProcessingTime = 20 * time.Second

// PollingInterval is pollingInterval in deploy/processor-job.yaml.
const PollingInterval = time.Second

// Record is an element of what GET /data answers.
type Record struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Content    string    `json:"content"`
	Status     string    `json:"status"`
	Job        string    `json:"job"`
	Attempts   int       `json:"attempts"`
	SentAt     time.Time `json:"sentAt"`
	StoredAt   time.Time `json:"storedAt"`
	FinishedAt time.Time `json:"finishedAt"`
}

// AllDone reports whether there are n records and no work is left.
func AllDone(records []Record, n int) bool {
	for _, r := range records {
		if r.Status != "done" {
			return false
		}
	}
	return len(records) == n
}

// RequireRecords checks that the tutorial's events, under the ids with which
// they were accepted, became one record each, that a Job of its own did the work
// of each at the first attempt, and logs the times.
func RequireRecords(t *testing.T, accepted, records []Record) {
	t.Helper()
	require.Len(t, accepted, Events)
	require.Len(t, records, Events)
	stored, jobs := map[string]Record{}, map[string]bool{}
	for i, r := range records {
		stored[r.ID] = r
		jobs[r.Job] = true
		require.Equal(t, "done", r.Status)
		require.Equal(t, 1, r.Attempts, "%s was delivered more than once", r.Name)
		require.Regexp(t, "^processor-job-", r.Job)
		require.False(t, r.StoredAt.Before(r.SentAt), "%s was stored before it was sent", r.Name)
		// both times are kept in milliseconds
		require.GreaterOrEqual(t, r.FinishedAt.Sub(r.StoredAt), ProcessingTime-time.Millisecond, "%s took too little time", r.Name)
		require.False(t, i > 0 && r.StoredAt.Before(records[i-1].StoredAt), "the records are not in the order in which they were stored")
	}
	require.Len(t, jobs, Events, "a Job processed more than one event")
	for i, a := range accepted {
		r := stored[a.ID]
		require.Equal(t, fmt.Sprintf("record%d", i+1), r.Name)
		require.Equal(t, fmt.Sprintf("content%d", i+1), r.Content)
		require.Equal(t, a.Name, r.Name)
		require.Equal(t, a.Content, r.Content)
	}
	LogTimes(t, records)
}

// LogTimes prints when each record's event was accepted, stored and done, in
// seconds after the first was accepted.
func LogTimes(t *testing.T, records []Record) {
	t.Helper()
	first := records[0].SentAt
	for _, r := range records {
		if r.SentAt.Before(first) {
			first = r.SentAt
		}
	}
	seconds := func(at time.Time) string { return fmt.Sprintf("%.1f s", at.Sub(first).Seconds()) }
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tACCEPTED\tSTORED\tDONE\tJOB")
	for _, r := range records {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Name, seconds(r.SentAt), seconds(r.StoredAt), seconds(r.FinishedAt), r.Job)
	}
	w.Flush()
	t.Logf("\n%s", table.String())
}

// Root is the project's folder.
func Root(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, "docker-compose.yml"), "run the test in its own folder, as go test does")
	return root
}

// NeedProgram fails the test when a program that it runs is missing.
func NeedProgram(t *testing.T, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	require.NoError(t, err, "this test runs %s: install it first", name)
}

// Shell runs programs in a folder, with variables added to the environment.
type Shell struct {
	Dir string
	Env []string // KEY=value
}

// Run runs a program to its end and returns what it wrote to stdout. Anything
// but success ends the test, with all that it wrote.
func (s Shell) Run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := s.Try(t.Context(), "", program, args...)
	require.NoError(t, err)
	return out
}

// Try is Run with an input, for what may fail: the error says what the program
// wrote.
func (s Shell) Try(ctx context.Context, stdin, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = s.Dir, append(os.Environ(), s.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, stdout.String(), stderr.String())
		return stdout.String(), err
	}
	return stdout.String(), nil
}

// Eventually waits until check passes, and fails the test with what check last
// complained about when that takes longer than limit. A check starts programs, on a cluster
// also one in a pod, so it is not called more often than once a second.
func Eventually(t *testing.T, limit time.Duration, check func(c *assert.CollectT)) {
	t.Helper()
	require.EventuallyWithT(t, check, limit, time.Second)
}
