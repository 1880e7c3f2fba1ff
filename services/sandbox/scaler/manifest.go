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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// ScaledJob is what a manifest asks for.
type ScaledJob struct {
	Name     string
	Queue    string
	Interval time.Duration // between two looks at the queue
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
	Env                              map[string]string
	PodNameVars                      []string // variables that hold the pod's name
}

// manifest lists the fields that make a difference, and as any those that make
// none here. Every other field is an error, as KEDA or Kubernetes would heed it
// and this package would not.
type manifest struct {
	APIVersion, Kind any
	Metadata         struct {
		Name              string
		Namespace, Labels any
	}
	Spec struct {
		PollingInterval, MinReplicaCount, MaxReplicaCount  *int64
		SuccessfulJobsHistoryLimit, FailedJobsHistoryLimit *int64
		Rollout                                            any // the manifest is read once
		ScalingStrategy                                    struct {
			Strategy, CustomScalingRunningJobPercentage string
			CustomScalingQueueLengthDeduction           int64
			PendingPodConditions                        []string
		}
		Triggers []struct {
			Type              string
			AuthenticationRef any // the login is in the variables
			Metadata          struct {
				Protocol, QueueName, Mode, Value, ActivationValue string

				HostFromEnv any // the server is in the variables, too
			}
		}
		JobTargetRef struct {
			BackoffLimit, ActiveDeadlineSeconds *int64
			Template                            struct {
				Metadata any
				Spec     pod
			}
		}
	}
}

type pod struct {
	RestartPolicy                 string
	TerminationGracePeriodSeconds *int64
	Containers                    []container

	ImagePullSecrets, ServiceAccountName, AutomountServiceAccountToken, EnableServiceLinks any
	SecurityContext, NodeSelector, Affinity, Tolerations, PriorityClassName                any
}

type container struct {
	EnvFrom []struct{ SecretRef struct{ Name string } }
	Env     []struct {
		Name, Value string
		ValueFrom   *struct {
			FieldRef     struct{ FieldPath string }
			SecretKeyRef struct{ Name, Key string }
		}
	}
	ReadinessProbe *struct {
		HTTPGet struct {
			Path string
			Port any // of the container; a process gets its own
		}
		PeriodSeconds                    *int64
		TimeoutSeconds, FailureThreshold any
	}

	Name, Image, ImagePullPolicy, Ports, Resources, SecurityContext any
}

// secrets maps the name of a Secret to its values.
type secrets map[string]map[string]string

// Load reads the one ScaledJob among the manifests in dir, its variables from
// the Secrets there included. Its error names whatever is not supported.
func Load(dir string) (ScaledJob, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return ScaledJob{}, fmt.Errorf("read the manifests: %w", err)
	}
	var scaledJobs [][]byte
	known := secrets{}
	for _, f := range files {
		if f.IsDir() || filepath.Ext(f.Name()) != ".yaml" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if errors.Is(err, fs.ErrPermission) {
			continue // the registry's pull secret is its owner's alone, and not needed
		}
		if err != nil {
			return ScaledJob{}, fmt.Errorf("read the manifests: %w", err)
		}
		for document := range bytes.SplitSeq(append([]byte("\n"), content...), []byte("\n---")) {
			var header struct{ Kind string }
			err := yaml.Unmarshal(document, &header)
			switch {
			case err != nil:
			case header.Kind == "ScaledJob":
				scaledJobs = append(scaledJobs, document)
			case header.Kind == "Secret":
				err = known.add(document)
			}
			if err != nil {
				return ScaledJob{}, fmt.Errorf("%s: %w", filepath.Join(dir, f.Name()), err)
			}
		}
	}
	if len(scaledJobs) != 1 {
		return ScaledJob{}, fmt.Errorf("read the manifests: %s holds %d ScaledJobs, not one", dir, len(scaledJobs))
	}
	j, err := parse(scaledJobs[0], known)
	if err != nil {
		return ScaledJob{}, fmt.Errorf("the ScaledJob in %s is not supported: %w", dir, err)
	}
	return j, nil
}

func (s secrets) add(document []byte) error {
	var m struct {
		Metadata   struct{ Name string }
		Data       map[string][]byte
		StringData map[string]string
	}
	if err := yaml.Unmarshal(document, &m); err != nil {
		return err
	}
	values := map[string]string{}
	for k, v := range m.Data {
		values[k] = string(v)
	}
	maps.Copy(values, m.StringData) // wins, as in Kubernetes
	s[m.Metadata.Name] = values
	return nil
}

// parse fills in the defaults of KEDA and Kubernetes.
func parse(document []byte, known secrets) (ScaledJob, error) {
	var m manifest
	if err := yaml.UnmarshalStrict(document, &m); err != nil {
		return ScaledJob{}, err
	}
	job, pod, strategy := m.Spec.JobTargetRef, m.Spec.JobTargetRef.Template.Spec, m.Spec.ScalingStrategy
	if len(m.Spec.Triggers) != 1 || len(pod.Containers) != 1 {
		return ScaledJob{}, fmt.Errorf("it has %d triggers and %d containers, not one of each", len(m.Spec.Triggers), len(pod.Containers))
	}
	var problems []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	number := func(field, text string) float64 {
		n, err := strconv.ParseFloat(text, 64)
		must(err == nil && n >= 0, "%s is %q, not a number", field, text)
		return n
	}
	trigger := m.Spec.Triggers[0]
	must(trigger.Type == "rabbitmq", "the trigger's type is %q, not rabbitmq", trigger.Type)
	must(trigger.Metadata.Protocol == "amqp", "the trigger's protocol is %q, not amqp; over http KEDA counts other messages", trigger.Metadata.Protocol)
	must(trigger.Metadata.Mode == "QueueLength", "the trigger's mode is %q, not QueueLength", trigger.Metadata.Mode)
	must(trigger.Metadata.QueueName != "", "the trigger has no queueName")
	must(or(job.BackoffLimit, 6) == 0, "backoffLimit is not 0: a Job is tried once")
	must(pod.RestartPolicy == "Never", "restartPolicy is %q, not Never", pod.RestartPolicy)
	j := ScaledJob{
		Name: m.Metadata.Name, Queue: trigger.Metadata.QueueName,
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
	if probe := pod.Containers[0].ReadinessProbe; probe != nil {
		j.ProbePath, j.ProbePeriod = probe.HTTPGet.Path, seconds(or(probe.PeriodSeconds, 10))
		must(j.ProbePath != "" && j.ProbePeriod > 0, "the readiness probe has no httpGet.path or a period of 0")
	}
	problems = append(problems, pod.Containers[0].readEnv(&j, known))
	return j, errors.Join(problems...)
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

func (c container) readEnv(j *ScaledJob, known secrets) error {
	var problems []error
	j.Env = map[string]string{}
	for _, from := range c.EnvFrom {
		values, ok := known[from.SecretRef.Name]
		if !ok {
			problems = append(problems, fmt.Errorf("envFrom: there is no manifest of a Secret %q", from.SecretRef.Name))
		}
		maps.Copy(j.Env, values)
	}
	for _, e := range c.Env { // these win, as in Kubernetes
		switch {
		case e.ValueFrom == nil && !strings.Contains(e.Value, "$("):
			j.Env[e.Name] = e.Value
		case e.ValueFrom != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.name":
			j.PodNameVars = append(j.PodNameVars, e.Name)
		case e.ValueFrom != nil && e.ValueFrom.SecretKeyRef.Name != "":
			ref := e.ValueFrom.SecretKeyRef
			value, ok := known[ref.Name][ref.Key]
			if !ok {
				problems = append(problems, fmt.Errorf("env %s: there is no manifest of a Secret %q with the key %q", e.Name, ref.Name, ref.Key))
			}
			j.Env[e.Name] = value
		default:
			problems = append(problems, fmt.Errorf("env %s is neither a value without $(…), nor a Secret's, nor metadata.name", e.Name))
		}
	}
	return errors.Join(problems...)
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// or returns what an optional field holds, or else its default.
func or(field *int64, otherwise int64) int64 {
	if field == nil {
		return otherwise
	}
	return *field
}
