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
              - {name: RABBITMQ_VHOST, value: /}
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
		ProbePath: "/readyz", ProbePeriod: time.Second, ProbeFailures: 3,
		Env: map[string]string{
			"RABBITMQ_HOST": "rabbitmq", "RABBITMQ_VHOST": "/", "RABBITMQ_USER": "wins", "RABBITMQ_PASSWORD": `a/b?c#d%"\`,
			"token": "secret", "TOKEN": "secret", "POD_NAME": PodName,
		},
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
		"two of one name":      {"apiVersion", scaledJob + "\n---\napiVersion", `two ScaledJobs named "processor-job"`},
		"two others":           {"name: processor-job", "name: a\n---\nkind: ScaledJob\nmetadata:\n  name: b", `holds 2 ScaledJobs ["a" "b"]`},
		"an unknown field":     {"pollingInterval", "pollInterval", "unknown field spec.pollInterval"},
		"a field twice":        {"backoffLimit: 0", "backoffLimit: 0\n    backoffLimit: 0", `"backoffLimit" already set`},
		"no container":         {"        containers:", "        containers: []\n        others:", "no container"},
		"a paused one":         {"name: processor-job", "name: j\n  annotations: {autoscaling.keda.sh/paused: \"true\"}", "autoscaling.keda.sh/paused"},
		"several pods":         {"backoffLimit: 0", "backoffLimit: 0\n    completions: 3", "completions is not 1"},
		"suspended":            {"backoffLimit: 0", "backoffLimit: 0\n    suspend: true", "suspended"},
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
		"another field":        {"metadata.name", "status.phase", "env POD_NAME is neither"},
		"another probe":        {"httpGet: {path: /readyz, port: probe}", "tcpSocket: {port: probe}", "has no httpGet"},
		"a probe with TLS":     {"port: probe}", "port: probe, scheme: HTTPS}", "scheme is HTTPS"},
		"http, automatically":  {"protocol: amqp", "host: http://rabbitmq:15672/", `protocol is "http"`},
		"a missing ConfigMap":  {"secretRef: {name: logins}", "configMapRef: {name: logins}", `no manifest of a ConfigMap "logins"`},
		"another queue":        {"RABBITMQ_HOST, value: rabbitmq}", "RABBITMQ_QUEUE, value: other}", `the queue "task_queue" (queueName), and the worker reads "other"`},
		"another vhost":        {"protocol: amqp", "host: amqp://rabbitmq:5672/media", `virtual host "media" (the path of its address), and the worker reads in "/"`},
		"a late timeout":       {"RABBITMQ_HOST, value: rabbitmq}", "WORK_TIMEOUT, value: 10m}", "WORK_TIMEOUT is 10m0s and activeDeadlineSeconds 10m0s"},
		"a missing volume":     {"            env:\n", "            volumeMounts: [{name: none, mountPath: /x}]\n            env:\n", `the volume "none"`},
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
	require.Equal(t, j.Queue, j.Env["RABBITMQ_QUEUE"], "KEDA would count another queue than the worker's")
	require.Equal(t, "accurate", j.Strategy.Name)
	require.True(t, j.PendingUntilReady)
	require.GreaterOrEqual(t, time.Duration(j.ProbeFailures)*j.ProbePeriod, time.Minute, "work that keeps the CPU busy may miss probes, and must not be pending again")
	require.Equal(t, time.Second, j.ProbePeriod, "a pod that has claimed must not be pending for long")
	require.Equal(t, time.Second, j.Interval, "the waits in the README")
	work, err := time.ParseDuration(j.Env["WORK_TIMEOUT"])
	require.NoError(t, err)
	require.GreaterOrEqual(t, j.Deadline, work+2*time.Minute+time.Minute, "RETRY_TIMEOUT and the start have room, too")
	require.NotEmpty(t, j.Env["RABBITMQ_HOST"])
	require.NotEmpty(t, j.Env["RABBITMQ_PASSWORD"])
}

// whole is a worker's manifest with much of what Kubernetes knows.
const whole = `kind: ScaledJob
metadata:
  name: thumbnails
  namespace: media
  annotations: {team: media}
spec:
  envSourceContainerName: worker
  triggers:
    - type: rabbitmq
      name: images
      metadata: {hostFromEnv: KEDA_URL, queueName: images, mode: QueueLength, value: "1"}
  jobTargetRef:
    backoffLimit: 0
    parallelism: 1
    ttlSecondsAfterFinished: 60
    template:
      metadata:
        labels: {app: thumbnails}
        annotations: {linkerd.io/inject: disabled}
      spec:
        restartPolicy: Never
        serviceAccountName: worker
        nodeSelector: {disk: fast}
        tolerations: [{operator: Exists}]
        affinity: {}
        initContainers: [{name: wait, image: busybox}]
        volumes:
          - {name: scratch, emptyDir: {sizeLimit: 1Gi}}
          - {name: files, configMap: {name: worker, items: [{key: a.conf, path: etc/a.conf}]}}
          - {name: keys, secret: {secretName: logins, defaultMode: 256}}
          - {name: data, persistentVolumeClaim: {claimName: data}}
        containers:
          - {name: proxy, image: proxy}
          - name: worker
            image: worker
            command: [/service, --name, $(POD_NAME)]
            args: [--scratch=/scratch/x, $(GREETING), $$(HOME), $(NOBODY)]
            workingDir: /scratch/work
            lifecycle: {preStop: {sleep: {seconds: 1}}}
            livenessProbe: {exec: {command: ["true"]}}
            resources: {limits: {memory: 1Gi}}
            envFrom:
              - {configMapRef: {name: worker}, prefix: SET_}
              - secretRef: {name: not there, optional: true}
            env:
              - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
              - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
              - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
              - {name: KEDA_URL, valueFrom: {configMapKeyRef: {name: worker, key: url}}}
              - {name: NOTHING, valueFrom: {secretKeyRef: {name: logins, key: none, optional: true}}}
              - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
              - {name: GREETING, value: "$(APP) of $(NAMESPACE), $$5"}
              - {name: SCRATCH, value: /scratch}
            volumeMounts:
              - {name: scratch, mountPath: /scratch}
              - {name: files, mountPath: /etc/worker/, readOnly: true}
              - {name: keys, mountPath: /etc/token, subPath: token}
              - {name: data, mountPath: /data}
---
kind: ConfigMap
metadata: {name: worker}
data: {url: "amqp://rabbitmq", a.conf: "a = 1"}
binaryData: {bytes: AAE=}
`

func TestLoadWhole(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"job.yml": whole, "others.yaml": others, "more.json": `{"kind": "Service"}`})
	j, err := Load(dir)
	require.NoError(t, err)
	require.Equal(t, "thumbnails", j.Name)
	require.Equal(t, []string{"/service", "--name", PodName}, j.Command)
	require.Equal(t, []string{"--scratch=/scratch/x", "thumbnails of media, $5", "$(HOME)", "$(NOBODY)"}, j.Args)
	require.Equal(t, "/scratch/work", j.WorkingDir)
	require.Equal(t, map[string]string{
		"SET_url": "amqp://rabbitmq", "SET_a.conf": "a = 1", "SET_bytes": "\x00\x01",
		"POD_NAME": PodName, "NAMESPACE": "media", "APP": "thumbnails", "KEDA_URL": "amqp://rabbitmq",
		"GREETING": "thumbnails of media, $5", "SCRATCH": "/scratch",
	}, j.Env)
	require.Equal(t, []Folder{
		{MountPath: "/scratch", Volume: "scratch"},
		{MountPath: "/etc/worker", Volume: "files", Files: map[string]string{"etc/a.conf": "a = 1"}},
		{MountPath: "/etc/token", Volume: "keys", SubPath: "token", Files: map[string]string{"token": "secret", "RABBITMQ_USER": "user", "RABBITMQ_PASSWORD": `a/b?c#d%"\`}},
		{MountPath: "/data", Volume: "data"},
	}, j.Folders)
	var fields []string
	for _, note := range j.Notes {
		if field, ok := strings.CutSuffix(note, " makes no difference here"); ok {
			fields = append(fields, strings.TrimPrefix(field, "spec.jobTargetRef."))
		}
	}
	require.Equal(t, []string{
		"template.spec.affinity", "template.spec.containers[1].lifecycle", "template.spec.containers[1].livenessProbe",
		"template.spec.initContainers", "template.spec.nodeSelector", "template.spec.serviceAccountName", "template.spec.tolerations",
		"template.spec.volumes[3].persistentVolumeClaim", "ttlSecondsAfterFinished",
	}, fields)
	require.Contains(t, j.Notes, "the container proxy is not run, only worker is")
	require.Len(t, j.Notes, len(fields)+2+4, "the container, the variable CPUS and four mounts: %q", j.Notes)

	// beside the project's own ScaledJob it is that one that runs
	require.NoError(t, os.WriteFile(filepath.Join(dir, "processor-job.yaml"), []byte(scaledJob), 0o600))
	j, err = Load(dir)
	require.NoError(t, err)
	require.Equal(t, "processor-job", j.Name)
	require.Equal(t, []string{"the ScaledJob thumbnails is not run, only processor-job is"}, j.Notes)
}

// Whatever a manifest holds, Load returns one ScaledJob that can be run, or an error.
func FuzzManifest(f *testing.F) {
	f.Add(scaledJob + "\n---\n" + others)
	f.Add(`{"kind": "ScaledJob", "metadata": {"name": 1}, "spec": []}`)
	f.Add("kind: ScaledJob\nspec: {triggers: [null, {metadata: null}], jobTargetRef: {template: {spec: {containers: [null]}}}}")
	f.Add("kind: ScaledJob\nspec: {pollingInterval: -9223372036854775808, maxReplicaCount: 9223372036854775807}")
	f.Add("a: &a [*a, *a]\n---\n\x00\xff\n---")
	f.Add("kind: Secret\ndata: {a: null, b: '===='}\n---\nkind: ConfigMap\nbinaryData: {a: 1}")
	f.Fuzz(func(t *testing.T, content string) {
		j, err := Load(folder(t, map[string]string{"job.yaml": content}))
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		require.NotEmpty(t, j.Name)
		require.Positive(t, j.Interval)
		require.GreaterOrEqual(t, j.Grace, time.Duration(0))
		require.GreaterOrEqual(t, j.Deadline, time.Duration(0))
		require.Positive(t, j.Strategy.Target)
		require.GreaterOrEqual(t, j.Strategy.MaxReplicas, int64(0))
	})
}
