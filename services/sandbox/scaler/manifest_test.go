package scaler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const scaledJob = `apiVersion: keda.sh/v1alpha1
kind: ScaledJob
metadata:
  name: processor-job
spec:
  pollingInterval: 5
  maxReplicaCount: 10
  successfulJobsHistoryLimit: 4
  failedJobsHistoryLimit: 3
  scalingStrategy:
    strategy: accurate
    pendingPodConditions: [Ready]
  triggers:
    - type: rabbitmq
      metadata:
        protocol: amqp
        queueName: task_queue
        mode: QueueLength
        value: "2"
  jobTargetRef:
    backoffLimit: 0
    activeDeadlineSeconds: 600
    template:
      spec:
        restartPolicy: Never
        terminationGracePeriodSeconds: 7
        containers:
          - name: processor-job
            image: <REPO>/processor-job:1.0
            envFrom:
              - secretRef: {name: logins}
            env:
              - {name: RABBITMQ_HOST, value: rabbitmq}
              - {name: RABBITMQ_USER, value: wins}
              - name: POD_NAME
                valueFrom: {fieldRef: {fieldPath: metadata.name}}
              - name: TOKEN
                valueFrom: {secretKeyRef: {name: logins, key: token}}
            readinessProbe:
              httpGet: {path: /readyz, port: probe}
              periodSeconds: 1
`

// the rest of a folder: other kinds, Secrets in both forms, several documents
const others = `# a comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {key: "not base64!"}
--- # another
apiVersion: v1
kind: Secret
metadata: {name: logins}
data: {token: c2VjcmV0, RABBITMQ_PASSWORD: b2xk}
stringData:
  RABBITMQ_USER: user
  RABBITMQ_PASSWORD: "a/b?c#d%\"\\"
`

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return dir
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"job.yaml": scaledJob, "others.yaml": others, "notes.txt": "{"})
	require.NoError(t, os.Mkdir(filepath.Join(dir, "infrastructure.yaml"), 0o700)) // folders are not read
	j, err := Load(dir)
	require.NoError(t, err)
	require.Equal(t, ScaledJob{
		Name: "processor-job", Queue: "task_queue", Interval: 5 * time.Second,
		Strategy:          Strategy{Name: "accurate", Target: 2, MaxReplicas: 10},
		PendingUntilReady: true,
		SuccessfulHistory: 4, FailedHistory: 3,
		Deadline: 10 * time.Minute, Grace: 7 * time.Second,
		ProbePath: "/readyz", ProbePeriod: time.Second,
		Env: map[string]string{
			"RABBITMQ_HOST": "rabbitmq", "RABBITMQ_USER": "wins", "RABBITMQ_PASSWORD": `a/b?c#d%"\`,
			"token": "secret", "TOKEN": "secret",
		},
		PodNameVars: []string{"POD_NAME"},
	}, j)
}

func TestLoadDefaults(t *testing.T) {
	t.Parallel()
	j, err := Load(folder(t, map[string]string{"job.yaml": `
kind: ScaledJob
metadata: {name: j}
spec:
  minReplicaCount: 3
  triggers: [{type: rabbitmq, metadata: {protocol: amqp, queueName: q, mode: QueueLength, value: "1"}}]
  jobTargetRef:
    backoffLimit: 0
    template: {spec: {restartPolicy: Never, containers: [{}]}}
`}))
	require.NoError(t, err)
	require.Equal(t, ScaledJob{
		Name: "j", Queue: "q", Interval: 30 * time.Second,
		Strategy:          Strategy{Name: "default", Target: 1, MinReplicas: 3, MaxReplicas: 100},
		SuccessfulHistory: 100, FailedHistory: 100,
		Grace: 30 * time.Second, Env: map[string]string{},
	}, j)
}

func TestLoadErrors(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ old, new, want string }{
		"not YAML":             {"kind: ScaledJob", "kind: [", "job.yaml: error converting YAML to JSON"},
		"no ScaledJob":         {"kind: ScaledJob", "kind: ScaledObject", "holds 0 ScaledJobs"},
		"two of them":          {"apiVersion", scaledJob + "\n---\napiVersion", "holds 2 ScaledJobs"},
		"an unknown field":     {"pollingInterval", "pollInterval", `unknown field "pollInterval"`},
		"a field of a Job":     {"backoffLimit", "ttlSecondsAfterFinished: 5\n    backoffLimit", `unknown field "ttlSecondsAfterFinished"`},
		"a field of a pod":     {"restartPolicy", "initContainers: []\n        restartPolicy", `unknown field "initContainers"`},
		"a command":            {"name: processor-job\n            image", "command: [sh]\n            image", `unknown field "command"`},
		"retries":              {"backoffLimit: 0", "backoffLimit: 3", "backoffLimit is not 0"},
		"retries by default":   {"    backoffLimit: 0\n", "", "backoffLimit is not 0"},
		"restarts":             {"Never", "OnFailure", `restartPolicy is "OnFailure"`},
		"an unknown strategy":  {"accurate", "precise", `the strategy is "precise"`},
		"another condition":    {"[Ready]", "[Initialized]", `condition is "Initialized"`},
		"another trigger":      {"rabbitmq\n", "kafka\n", `type is "kafka"`},
		"several triggers":     {"  jobTargetRef", "    - type: cron\n  jobTargetRef", "2 triggers"},
		"http":                 {"amqp", "http", `protocol is "http"`},
		"another mode":         {"QueueLength", "MessageRate", `mode is "MessageRate"`},
		"a trigger's option":   {"mode", "excludeUnacknowledged: \"true\"\n        mode", "excludeUnacknowledged"},
		"no queue":             {"task_queue", `""`, "no queueName"},
		"a value that is none": {`"2"`, `"two"`, `value is "two"`},
		"a value of 0":         {`"2"`, `"0"`, "value or pollingInterval is 0"},
		"a missing Secret":     {"{name: logins}", "{name: other}", `no manifest of a Secret "other"`},
		"a missing key":        {"key: token", "key: password", `the key "password"`},
		"another field":        {"metadata.name", "status.podIP", "env POD_NAME is neither"},
		"a reference":          {"value: rabbitmq", "value: $(HOST)", "env RABBITMQ_HOST is neither"},
		"another probe":        {"httpGet: {path: /readyz, port: probe}", "tcpSocket: {port: probe}", "tcpSocket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, scaledJob, tt.old)
			manifest := strings.Replace(scaledJob, tt.old, tt.new, 1)
			_, err := Load(folder(t, map[string]string{"job.yaml": manifest, "others.yaml": others}))
			require.ErrorContains(t, err, tt.want)
		})
	}
	_, err := Load(filepath.Join(t.TempDir(), "nothing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLoadNamesAllProblems(t *testing.T) {
	t.Parallel()
	manifest := strings.NewReplacer("amqp", "http", "Never", "Always", "task_queue", `""`).Replace(scaledJob)
	_, err := Load(folder(t, map[string]string{"job.yaml": manifest, "others.yaml": others}))
	require.ErrorContains(t, err, "protocol")
	require.ErrorContains(t, err, "restartPolicy")
	require.ErrorContains(t, err, "queueName")
}

// The project's own manifest must stay one that the sandbox can follow.
func TestLoadDeploy(t *testing.T) {
	t.Parallel()
	j, err := Load("../../../deploy")
	require.NoError(t, err)
	require.Equal(t, "processor-job", j.Name)
	require.Equal(t, "task_queue", j.Queue)
	require.Equal(t, "accurate", j.Strategy.Name)
	require.True(t, j.PendingUntilReady)
	require.NotEmpty(t, j.Env["RABBITMQ_PASSWORD"])
}
