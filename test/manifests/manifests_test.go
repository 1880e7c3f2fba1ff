// Package manifests holds deploy/ to what no cluster would notice: fields that must fit
// each other, and those that are missed only when it is too late.
package manifests_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const deploy = "../../deploy"

type object struct {
	Kind     string
	Metadata metadata
	Spec     struct {
		Template     podTemplate // of a Deployment or a StatefulSet
		JobTargetRef struct {
			Template podTemplate
		}
		PodMetricsEndpoints []struct {
			Port, Path  string
			HonorLabels bool
		}
		Selector struct{ MatchLabels map[string]string }
	}
}

type metadata struct {
	Name                string
	Labels, Annotations map[string]string
}

type podTemplate struct {
	Metadata metadata
	Spec     struct {
		AutomountServiceAccountToken  *bool
		TerminationGracePeriodSeconds int
		Containers, InitContainers    []container
	}
}

type container struct {
	Env             []struct{ Name, Value string }
	Ports           []struct{ Name string }
	SecurityContext struct{ ReadOnlyRootFilesystem bool }
	LivenessProbe   probe
	ReadinessProbe  probe
	Lifecycle       struct {
		PreStop struct{ Sleep struct{ Seconds int } }
	}
}

type probe struct{ HTTPGet struct{ Path string } }

func (c container) duration(t *testing.T, name string) time.Duration {
	t.Helper()
	for _, variable := range c.Env {
		if variable.Name == name {
			d, err := time.ParseDuration(variable.Value)
			require.NoError(t, err)
			return d
		}
	}
	require.FailNow(t, "there is no "+name)
	return 0
}

// objects returns all of deploy/, by kind and name.
func objects(t *testing.T) map[string]object {
	t.Helper()
	found := map[string]object{}
	require.NoError(t, filepath.WalkDir(deploy, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		content, err := os.ReadFile(path)
		for document := range strings.SplitSeq(string(content), "\n---\n") {
			var o object
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				return err
			}
			name := o.Kind + " " + o.Metadata.Name
			if dir := filepath.Base(filepath.Dir(path)); dir == "ha" { // in place of infrastructure/
				name += " of ha"
			}
			found[name] = o
		}
		return err
	}))
	return found
}

// pods returns the templates of all pods.
func pods(t *testing.T) map[string]podTemplate {
	t.Helper()
	found := map[string]podTemplate{}
	for name, o := range objects(t) {
		for _, template := range []podTemplate{o.Spec.Template, o.Spec.JobTargetRef.Template} {
			if len(template.Spec.Containers) > 0 {
				found[name] = template
			}
		}
	}
	require.Contains(t, found, "ScaledJob processor-job")
	require.Contains(t, found, "StatefulSet rabbitmq of ha")
	return found
}

func TestEveryPodIsClosed(t *testing.T) {
	t.Parallel()
	for name, pod := range pods(t) {
		require.NotNil(t, pod.Spec.AutomountServiceAccountToken, name)
		require.False(t, *pod.Spec.AutomountServiceAccountToken, name)
		for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
			require.True(t, c.SecurityContext.ReadOnlyRootFilesystem, name)
		}
	}
}

// A sidecar keeps a Job from its end, and an autoscaler ends it too early.
func TestNothingDisturbsAJob(t *testing.T) {
	t.Parallel()
	pod := pods(t)["ScaledJob processor-job"].Metadata
	require.Equal(t, "false", pod.Labels["sidecar.istio.io/inject"])
	require.Equal(t, "disabled", pod.Annotations["linkerd.io/inject"])
	require.Equal(t, "false", pod.Annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"])
	require.Equal(t, "true", pod.Annotations["karpenter.sh/do-not-disrupt"])
}

func TestPodsHaveTheTimeToStop(t *testing.T) {
	t.Parallel()
	app, worker := pods(t)["Deployment complex-app"].Spec, pods(t)["Deployment processor"].Spec
	c := app.Containers[0]
	preStop := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	require.Positive(t, preStop, "nodes still send requests")
	require.GreaterOrEqual(t, time.Duration(app.TerminationGracePeriodSeconds)*time.Second, preStop+c.duration(t, "SHUTDOWN_TIMEOUT")+3*time.Second)
	require.GreaterOrEqual(t, time.Duration(worker.TerminationGracePeriodSeconds)*time.Second, worker.Containers[0].duration(t, "STOP_GRACE")+3*time.Second)
}

// A pod that is not ready must not be restarted.
func TestProbes(t *testing.T) {
	t.Parallel()
	c := pods(t)["Deployment complex-app"].Spec.Containers[0]
	require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path)
	require.Equal(t, "/readyz", c.ReadinessProbe.HTTPGet.Path)
}

// Prometheus says nothing of a port that no pod has.
func TestMonitorsFindTheirPorts(t *testing.T) {
	t.Parallel()
	all := objects(t)
	for workload, name := range map[string]string{"Deployment complex-app": "complex-app", "StatefulSet rabbitmq": "rabbitmq", "StatefulSet rabbitmq of ha": "rabbitmq"} {
		monitor, pod := all["PodMonitor "+name].Spec, pods(t)[workload]
		for label, value := range monitor.Selector.MatchLabels {
			require.Equal(t, value, pod.Metadata.Labels[label], name)
		}
		var ports, scraped []string
		for _, port := range pod.Spec.Containers[0].Ports {
			ports = append(ports, port.Name)
		}
		for _, endpoint := range monitor.PodMetricsEndpoints {
			scraped = append(scraped, endpoint.Port)
		}
		require.NotEmpty(t, scraped)
		require.Contains(t, ports, scraped[0], "the second one is a chart's")
	}
	for _, endpoint := range all["PodMonitor rabbitmq"].Spec.PodMetricsEndpoints {
		require.Equal(t, "/metrics/per-object", endpoint.Path)
	}
	for _, endpoint := range all["PodMonitor keda-operator"].Spec.PodMetricsEndpoints {
		require.True(t, endpoint.HonorLabels)
	}
}
