// Package scaler does on one machine what KEDA does in a cluster: it reads a
// ScaledJob's manifest, watches the queue and runs a process where Kubernetes
// would run a Job.
package scaler

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// ScaledJob is what a manifest asks for.
type ScaledJob struct {
	Name     string
	Queue    string
	Interval time.Duration // between two polls of the queue
	Strategy Strategy
	// PendingUntilReady makes a Job count as pending until its pod is ready;
	// otherwise it does until its pod runs.
	PendingUntilReady bool
	// So many finished Jobs are kept.
	SuccessfulHistory, FailedHistory int
	Deadline                         time.Duration // for a Job; 0 is none
	Grace                            time.Duration // from SIGTERM to SIGKILL
	ProbePath                        string        // of the readiness probe; without one a pod is ready when it runs
	ProbePeriod                      time.Duration
	ProbeFailures                    int64 // in a row, until a ready pod is no longer ready

	// Command, Args and the values of Env may contain PodName and the paths of Folders.
	Command    []string // in place of the image's program
	Args       []string
	WorkingDir string // below a folder; otherwise it is this process's
	Env        map[string]string
	Folders    []Folder

	// Notes name, one line each, the fields of the manifest that make no difference
	// here, or another one than in a cluster.
	Notes []string
}

// PodName stands for the name of a Job's pod, which is known when the Job starts.
const PodName = "$(metadata.name)"

// Folder is a volume that is mounted: a folder that each Job gets for itself.
type Folder struct {
	MountPath string
	Volume    string            // two mounts of one volume are one folder
	SubPath   string            // within the volume
	Files     map[string]string // of a ConfigMap or a Secret
}

// manifest lists the fields that are heeded and, as any, those that nearly every
// manifest has and that mean nothing for a process. Other fields of a Job get a note.
// Other fields of the ScaledJob are errors: KEDA would heed them.
type manifest struct {
	APIVersion, Kind any
	Metadata         struct {
		Name, Namespace string
		Labels          any
		Annotations     map[string]string
	}
	Spec struct {
		PollingInterval, MinReplicaCount, MaxReplicaCount  *int64
		SuccessfulJobsHistoryLimit, FailedJobsHistoryLimit *int64
		EnvSourceContainerName                             string
		Rollout                                            any // the manifest is read once
		ScalingStrategy                                    struct {
			Strategy, CustomScalingRunningJobPercentage string
			CustomScalingQueueLengthDeduction           int64
			PendingPodConditions                        []string

			MultipleScalersCalculation any // there is one
		}
		Triggers []struct {
			Type     string
			Metadata struct {
				Protocol, QueueName, Mode, Value, ActivationValue string
				Host, HostFromEnv                                 string // for their scheme: the server is in the variables
			}
			AuthenticationRef, Name any // the login is in the variables, too
		}
		JobTargetRef struct {
			BackoffLimit, ActiveDeadlineSeconds *int64
			Parallelism, Completions            *int64
			Suspend                             bool
			Template                            struct {
				Metadata struct{ Labels, Annotations map[string]string }
				Spec     pod
			}
		}
	}
}

type pod struct {
	RestartPolicy                 string
	TerminationGracePeriodSeconds *int64
	Containers                    []container
	Volumes                       []volume

	ImagePullSecrets, AutomountServiceAccountToken, EnableServiceLinks, SecurityContext any
}

type container struct {
	Name          string
	Command, Args []string
	WorkingDir    string
	EnvFrom       []struct {
		Prefix                  string
		SecretRef, ConfigMapRef *source
	}
	Env []struct {
		Name, Value string
		ValueFrom   *struct {
			FieldRef                      *struct{ FieldPath string }
			SecretKeyRef, ConfigMapKeyRef *source
			ResourceFieldRef              any
		}
	}
	VolumeMounts []struct {
		Name, MountPath, SubPath string
		ReadOnly                 any
	}
	ReadinessProbe *struct {
		HTTPGet *struct {
			Path, Scheme string
			Port         any // of the container; a process gets its own
		}
		PeriodSeconds, FailureThreshold *int64
		TimeoutSeconds                  any
	}

	Image, ImagePullPolicy, Ports, Resources, SecurityContext any
}

// source is a ConfigMap or a Secret, or one key of it.
type source struct {
	Name, Key string
	Optional  bool
}

type volume struct {
	Name              string
	EmptyDir          any
	ConfigMap, Secret *struct {
		Name, SecretName string // the one or the other
		Optional         bool
		Items            []struct {
			Key, Path string
			Mode      any
		}
		DefaultMode any
	}
}

// objects are the ConfigMaps and Secrets, such as "Secret keda-p2-credentials", and
// their values.
type objects map[string]map[string]string

// manifests are what the files of a folder hold.
type manifests struct {
	scaledJobs map[string][]byte // by name
	objects    objects
	unread     []error // files that may not be read
}

// Load reads a ScaledJob among the manifests in dir, with its variables from the
// ConfigMaps and Secrets there. When there are several it is the one named
// processor-job. The error names everything that is not supported.
func Load(dir string) (ScaledJob, error) {
	found, err := read(dir)
	if err != nil {
		return ScaledJob{}, fmt.Errorf("read the manifests: %w", err)
	}
	names := slices.Sorted(maps.Keys(found.scaledJobs))
	name := "processor-job"
	switch {
	case len(names) == 1:
		name = names[0]
	case found.scaledJobs[name] == nil:
		// a file that may not be read may be the one that is missing
		return ScaledJob{}, errors.Join(append([]error{
			fmt.Errorf("read the manifests: %s holds %d ScaledJobs %q, not one or one named %s", dir, len(names), names, name)}, found.unread...)...)
	}
	j, err := parse(found.scaledJobs[name], found.objects)
	if err != nil {
		return ScaledJob{}, fmt.Errorf("the ScaledJob in %s is not supported: %w", dir, errors.Join(append([]error{err}, found.unread...)...))
	}
	for _, other := range names {
		if other != name {
			j.Notes = append(j.Notes, fmt.Sprintf("the ScaledJob %s is not run, only %s is", other, name))
		}
	}
	return j, nil
}

// read reads the files that kubectl apply -f would read.
func read(dir string) (manifests, error) {
	found := manifests{scaledJobs: map[string][]byte{}, objects: objects{}}
	files, err := os.ReadDir(dir)
	if err != nil {
		return manifests{}, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if f.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			continue
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrPermission) {
			// the registry's pull secret is its owner's alone, and not needed
			found.unread = append(found.unread, err)
			continue
		}
		if err != nil {
			return manifests{}, err
		}
		for document := range bytes.SplitSeq(append([]byte("\n"), content...), []byte("\n---")) {
			if err := found.add(document); err != nil {
				return manifests{}, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return found, nil
}

func (m manifests) add(document []byte) error {
	var header struct {
		Kind     string
		Metadata struct{ Name string }
	}
	if err := yaml.Unmarshal(document, &header); err != nil {
		return err
	}
	name := header.Metadata.Name
	switch header.Kind {
	case "ScaledJob":
		if m.scaledJobs[name] != nil {
			return fmt.Errorf("there are two ScaledJobs named %q", name)
		}
		m.scaledJobs[name] = document
	case "Secret":
		var o struct {
			Data       map[string][]byte
			StringData map[string]string
		}
		if err := yaml.Unmarshal(document, &o); err != nil {
			return err
		}
		m.objects[header.Kind+" "+name] = merge(o.Data, o.StringData) // the second wins, as in Kubernetes
	case "ConfigMap":
		var o struct {
			Data       map[string]string
			BinaryData map[string][]byte
		}
		if err := yaml.Unmarshal(document, &o); err != nil {
			return err
		}
		m.objects[header.Kind+" "+name] = merge(o.BinaryData, o.Data)
	}
	return nil
}

func merge(binary map[string][]byte, text map[string]string) map[string]string {
	values := map[string]string{}
	for k, v := range binary {
		values[k] = string(v)
	}
	maps.Copy(values, text)
	return values
}

// parse fills in the defaults of KEDA and Kubernetes.
func parse(document []byte, known objects) (ScaledJob, error) {
	var tree map[string]any
	if err := yaml.UnmarshalStrict(document, &tree); err != nil {
		return ScaledJob{}, err // such as a field that is there twice
	}
	var m manifest
	if err := yaml.Unmarshal(document, &m); err != nil {
		return ScaledJob{}, err
	}
	var problems []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	var j ScaledJob
	unknown("", tree, reflect.TypeOf(m), func(field string) {
		if strings.HasPrefix(field, "spec.jobTargetRef.") {
			j.Notes = append(j.Notes, field+" makes no difference here")
		} else {
			must(false, "unknown field %s", field)
		}
	})
	job, pod, strategy := m.Spec.JobTargetRef, m.Spec.JobTargetRef.Template.Spec, m.Spec.ScalingStrategy
	must(len(m.Spec.Triggers) == 1, "it has %d triggers, not one", len(m.Spec.Triggers))
	must(len(pod.Containers) > 0, "it has no container")
	if len(problems) > 0 {
		return ScaledJob{}, errors.Join(problems...)
	}
	number := func(field, text string) float64 {
		n, err := strconv.ParseFloat(text, 64)
		must(err == nil && n >= 0, "%s is %q, not a number", field, text)
		return n
	}
	for name := range m.Metadata.Annotations {
		must(!strings.HasPrefix(name, "autoscaling.keda.sh/"), "the annotation %s", name)
	}
	trigger := m.Spec.Triggers[0]
	must(trigger.Type == "rabbitmq", "the trigger's type is %q, not rabbitmq", trigger.Type)
	must(trigger.Metadata.Mode == "QueueLength", "the trigger's mode is %q, not QueueLength", trigger.Metadata.Mode)
	must(trigger.Metadata.QueueName != "", "the trigger has no queueName")
	must(or(job.BackoffLimit, 6) == 0, "backoffLimit is not 0: a Job is tried once")
	must(or(job.Parallelism, 1) == 1 && or(job.Completions, 1) == 1, "parallelism or completions is not 1: a Job is one process")
	must(!job.Suspend, "the Jobs are suspended")
	must(pod.RestartPolicy == "Never", "restartPolicy is %q, not Never", pod.RestartPolicy)
	j = ScaledJob{
		Name: m.Metadata.Name, Queue: trigger.Metadata.QueueName, Notes: j.Notes,
		Interval:          seconds(or(m.Spec.PollingInterval, 30)),
		SuccessfulHistory: int(or(m.Spec.SuccessfulJobsHistoryLimit, 100)),
		FailedHistory:     int(or(m.Spec.FailedJobsHistoryLimit, 100)),
		Deadline:          seconds(or(job.ActiveDeadlineSeconds, 0)),
		Grace:             seconds(or(pod.TerminationGracePeriodSeconds, 30)),
		Strategy: Strategy{
			Name:       cmp.Or(strategy.Strategy, "default"),
			Target:     number("the trigger's value", trigger.Metadata.Value),
			Activation: number("the trigger's activationValue", cmp.Or(trigger.Metadata.ActivationValue, "0")),
			Deduction:  strategy.CustomScalingQueueLengthDeduction,
		},
	}
	switch j.Strategy.Name {
	case "default", "accurate", "eager":
	case "custom":
		j.Strategy.RunningPercentage = number("customScalingRunningJobPercentage", strategy.CustomScalingRunningJobPercentage)
	default:
		must(false, "the strategy is %q, not default, custom, accurate or eager", strategy.Strategy)
	}
	j.Strategy.limit(or(m.Spec.MinReplicaCount, 0), m.Spec.MaxReplicaCount)
	must(j.Strategy.Target > 0 && j.Interval > 0, "the trigger's value or pollingInterval is 0")
	for _, condition := range strategy.PendingPodConditions {
		j.PendingUntilReady = true
		must(condition == "Ready", "the pending pod condition is %q, not Ready", condition)
	}

	worker := pod.Containers[0] // as for KEDA
	for _, c := range pod.Containers {
		if c.Name == m.Spec.EnvSourceContainerName && c.Name != "" {
			worker = c
		}
	}
	for _, c := range pod.Containers {
		if c.Name != worker.Name {
			j.Notes = append(j.Notes, fmt.Sprintf("the container %s is not run, only %s is", c.Name, worker.Name))
		}
	}
	if probe := worker.ReadinessProbe; probe != nil && probe.HTTPGet != nil {
		j.ProbePath, j.ProbePeriod, j.ProbeFailures = probe.HTTPGet.Path, seconds(or(probe.PeriodSeconds, 10)), or(probe.FailureThreshold, 3)
		must(j.ProbePath != "" && j.ProbePeriod > 0, "the readiness probe has no httpGet.path or a period of 0")
		must(cmp.Or(probe.HTTPGet.Scheme, "HTTP") == "HTTP", "the readiness probe's scheme is %s, not HTTP", probe.HTTPGet.Scheme)
	} else if probe != nil {
		must(!j.PendingUntilReady, "the readiness probe has no httpGet, and pendingPodConditions need its answer")
	}
	j.readEnv(worker, m, known, must)
	address := cmp.Or(trigger.Metadata.Host, j.Env[trigger.Metadata.HostFromEnv])
	protocol := cmp.Or(trigger.Metadata.Protocol, "auto")
	if protocol == "auto" {
		protocol, _, _ = strings.Cut(cmp.Or(address, "amqp"), ":")
	}
	j.checkSettings(address, must)
	must(protocol == "amqp" || protocol == "amqps", "the trigger's protocol is %q, not amqp; over http KEDA counts other messages", protocol)

	for _, text := range worker.Command {
		j.Command = append(j.Command, expand(text, j.Env))
	}
	for _, text := range worker.Args {
		j.Args = append(j.Args, expand(text, j.Env))
	}
	j.readFolders(worker, pod.Volumes, known, must)
	return j, errors.Join(problems...)
}

// checkSettings compares what the manifest says twice: to KEDA or Kubernetes, and to the
// worker in its variables.
func (j *ScaledJob) checkSettings(kedaURL string, must func(ok bool, format string, args ...any)) {
	if name, ok := j.Env["RABBITMQ_QUEUE"]; ok {
		must(name == j.Queue, "KEDA counts the queue %q (queueName), and the worker reads %q (RABBITMQ_QUEUE)", j.Queue, name)
	}
	if vhost, ok := j.Env["RABBITMQ_VHOST"]; ok {
		if u, err := url.Parse(kedaURL); err == nil && u.Host != "" {
			counted := cmp.Or(strings.TrimPrefix(u.Path, "/"), "/")
			must(counted == cmp.Or(vhost, "/"), "KEDA counts in the virtual host %q (the path of its address), and the worker reads in %q (RABBITMQ_VHOST)", counted, vhost)
		}
	}
	if work, err := time.ParseDuration(j.Env["WORK_TIMEOUT"]); err == nil && j.Deadline > 0 {
		must(work < j.Deadline, "WORK_TIMEOUT is %s and activeDeadlineSeconds %s: Kubernetes would stop the Job before its attempt has failed", work, j.Deadline)
	}
}

// unknown calls found with each field of value that type t does not have.
func unknown(path string, value any, t reflect.Type, found func(field string)) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := value.(type) {
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			below := strings.TrimPrefix(path+"."+name, ".")
			if field, ok := t.FieldByNameFunc(func(f string) bool { return strings.EqualFold(f, name) }); ok {
				unknown(below, v[name], field.Type, found)
			} else {
				found(below)
			}
		}
	case []any:
		if t.Kind() != reflect.Slice {
			return
		}
		for i, element := range v {
			unknown(fmt.Sprintf("%s[%d]", path, i), element, t.Elem(), found)
		}
	}
}

// limit follows MinReplicaCount and MaxReplicaCount in KEDA's
// apis/keda/v1alpha1/scaledjob_types.go.
func (s *Strategy) limit(minimum int64, maximum *int64) {
	switch {
	case maximum == nil:
		s.MinReplicas, s.MaxReplicas = minimum, 100
	case minimum > *maximum:
		s.MinReplicas, s.MaxReplicas = *maximum, *maximum
	default:
		s.MinReplicas, s.MaxReplicas = minimum, *maximum-minimum
	}
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// or returns what an optional field holds, or else its default.
func or(field *int64, otherwise int64) int64 {
	if field == nil {
		return otherwise
	}
	return *field
}
