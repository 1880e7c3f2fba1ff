package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"keda-p2/services/sandbox/scaler"
)

func TestVerify(t *testing.T) {
	t.Parallel()
	sent := []event{{"1", "record1", "content1"}, {"2", "record2", "content2"}}
	good := func() []record {
		return []record{{event: sent[0], Status: "done"}, {event: sent[1], Status: "done"}}
	}
	jobs := scaler.Totals{Started: 2, Succeeded: 2}
	require.NoError(t, verify(sent, good(), jobs))

	for name, tt := range map[string]struct {
		change func(*[]record, *scaler.Totals)
		want   string
	}{
		"no record":      {func(r *[]record, _ *scaler.Totals) { *r = (*r)[:1] }, "record2 has no record"},
		"one too many":   {func(r *[]record, _ *scaler.Totals) { *r = append(*r, record{}) }, "3 records for 2 events"},
		"wrong name":     {func(r *[]record, _ *scaler.Totals) { (*r)[0].Name = "x" }, `the record of record1 has the name "x"`},
		"wrong content":  {func(r *[]record, _ *scaler.Totals) { (*r)[0].Content = "y" }, `the content "y"`},
		"not done":       {func(r *[]record, _ *scaler.Totals) { (*r)[1].Status = "processing" }, "record2 is processing, not done"},
		"another Job":    {func(_ *[]record, j *scaler.Totals) { j.Started, j.Succeeded = 3, 3 }, "3 Jobs were started, 3 succeeded"},
		"a Job failed":   {func(_ *[]record, j *scaler.Totals) { j.Started, j.Failed = 3, 1 }, "1 failed"},
		"a Job too few":  {func(_ *[]record, j *scaler.Totals) { j.Started, j.Succeeded = 1, 1 }, "1 Jobs were started"},
		"a Job runs yet": {func(_ *[]record, j *scaler.Totals) { j.Succeeded = 1 }, "2 Jobs were started, 1 succeeded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			records, jobs := good(), jobs
			tt.change(&records, &jobs)
			require.ErrorContains(t, verify(sent, records, jobs), tt.want)
		})
	}
}

func TestPrintTables(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	printTables(&out,
		[]record{
			{event: event{"1", "record1", "content1"}, Status: "done", Job: "processor-job-aaaaa-bbbbb", Attempts: 1, SentAt: at, StoredAt: at.Add(5 * time.Second), FinishedAt: at.Add(25 * time.Second)},
			{event: event{"2", "a longer name", ""}, Status: "processing", Attempts: 2, SentAt: at, StoredAt: at},
		},
		[]scaler.Job{{Name: "processor-job-aaaaa", Status: scaler.Running, Started: at}})
	require.Equal(t, `RECORD         CONTENT   STATUS      ATTEMPTS  STORED AFTER  DONE AFTER  JOB (ITS POD)
record1        content1  done        1         5.0s          25.0s       processor-job-aaaaa-bbbbb
a longer name            processing  2         0.0s          -           

JOB                  STATUS   STARTED   TOOK
processor-job-aaaaa  running  12:00:00  -
`, out.String())
}

func TestProgressWithoutTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := &sandbox{out: &out}
	show, end := b.progress()
	show("one")
	show("one")
	show("two")
	end()
	require.Equal(t, "   0s  one\n   0s  two\n", out.String())
}

func TestExec(t *testing.T) {
	t.Parallel()
	result := filepath.Join(t.TempDir(), "result")
	b := &sandbox{out: os.Stderr, env: map[string]string{}, settings: settings{
		environ: map[string]string{
			"PATH": os.Getenv("PATH"), "SANDBOX_RABBITMQ": os.Getenv("SANDBOX_RABBITMQ"), "SANDBOX_MONGODB": os.Getenv("SANDBOX_MONGODB"), "RABBITMQ_TLS": "true", "OTHER": "kept",
		},
		command: []string{"sh", "-c", `echo "$RABBITMQ_HOST ${#RABBITMQ_PASSWORD} $MONGODB_HOST [$MONGODB_USER] [$RABBITMQ_TLS] $OTHER" >"$0"; exit 7`, result},
	}}
	err := execute(t.Context(), b)
	b.close()
	require.NoDirExists(t, b.dir)
	var failed commandError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, 7, failed.code())
	content, err := os.ReadFile(result)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1 26 127.0.0.1 [] [] kept\n", string(content))
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	deploy := t.TempDir()
	for name, tt := range map[string]struct {
		settings settings
		want     string
	}{
		"no manifests": {settings{deploy: filepath.Join(deploy, "missing")}, "-deploy"},
		"an empty one": {settings{deploy: deploy}, "0 ScaledJobs"},
		"no programs":  {settings{deploy: "../../../../deploy", bin: "missing"}, "make build"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &sandbox{settings: tt.settings, out: os.Stderr, env: map[string]string{}}
			require.ErrorContains(t, demo(t.Context(), b), tt.want)
			require.Empty(t, b.dir, "nothing was started")
		})
	}
	require.ErrorContains(t, execute(t.Context(), &sandbox{}), "give a command")
}
