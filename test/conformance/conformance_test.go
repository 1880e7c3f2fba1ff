// Package conformance lets KEDA's own code and the sandbox's decide on the same
// ScaledJobs in the same states, and compares. It is a module of its own, outside
// go.work: KEDA's executor pulls in 1,500 packages, minutes of compiling.
package conformance

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/kedacore/keda/v2/pkg/scaling/executor"
	"github.com/kedacore/keda/v2/pkg/scaling/scaledjob"
	"github.com/stretchr/testify/require"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/record"
	"k8s.io/metrics/pkg/apis/external_metrics"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"keda-p2/services/sandbox/scaler"
)

var (
	seed   = flag.Uint64("seed", 1, "seed of the random states")
	states = flag.Int("states", 4000, "how many states to try")
	only   = flag.Int("state", -1, "try this state only")
)

// known are the kinds of objects that KEDA reads and writes. The fake client goes
// through all of them for each new object, so there are no more than needed.
var known = k8sruntime.NewScheme()

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // KEDA logs each of its steps
	if err := errors.Join(batchv1.AddToScheme(known), corev1.AddToScheme(known), kedav1alpha1.AddToScheme(known)); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestSandboxDecidesAsKEDA(t *testing.T) {
	t.Parallel()
	if *only >= 0 {
		compare(t, *only)
		return
	}
	// how often each kind of decision was made, lest the states get trivial
	seen := make([]map[string]int, runtime.GOMAXPROCS(0))
	t.Run("states", func(t *testing.T) {
		for worker := range seen {
			seen[worker] = map[string]int{}
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := worker; i < *states; i += len(seen) {
					for what, happened := range compare(t, i) {
						if happened {
							seen[worker][what]++
						}
					}
				}
			})
		}
	})
	sum := map[string]int{}
	for _, s := range seen {
		for what, n := range s {
			sum[what] += n
		}
	}
	t.Logf("seed %d, %d states: %v", *seed, *states, sum)
	if *states >= 1000 {
		for _, what := range []string{"no Job", "some Jobs", "limited", "pending makes a difference", "running makes a difference", "sandbox counts"} {
			require.Greater(t, sum[what], *states/50, what)
		}
	}
}

// compare checks one state, and tells what it was good for.
func compare(t *testing.T, i int) map[string]bool {
	s := newState(rand.New(rand.NewPCG(*seed, uint64(i))))
	spec := s.sandboxJob(t)
	created, deleted := s.keda(t)
	running, pending := s.count(spec)
	decided := spec.Strategy.NewJobs(s.ready, running, pending)
	hint := fmt.Sprintf("again: make conformance SEED=%d STATE=%d\nready %d, running %d, pending %d\njobs %v\n%s",
		*seed, i, s.ready, running, pending, s.jobs, s.manifest)
	require.Equal(t, created, decided, "KEDA creates another number of Jobs\n%s", hint)
	require.Zero(t, deleted, "KEDA has deleted unfinished Jobs\n%s", hint)

	// The sandbox's Job is a process, its pod runs from the first moment on.
	// Where this is so, its own count must be KEDA's.
	expressible := s.expressible(spec)
	if expressible {
		r, p := spec.Count(s.sandboxJobs())
		require.Equal(t, [2]int64{running, pending}, [2]int64{r, p}, "the sandbox counts other Jobs\n%s", hint)
	}
	return map[string]bool{
		"no Job": created == 0, "some Jobs": created > 0,
		"limited":                    created > 0 && float64(created) < float64(s.ready)/spec.Strategy.Target-float64(pending),
		"pending makes a difference": decided != spec.Strategy.NewJobs(s.ready, running, 0),
		"running makes a difference": decided != spec.Strategy.NewJobs(s.ready, pending, pending),
		"sandbox counts":             expressible && pending > 0,
	}
}

// keda lets KEDA decide, and counts the Jobs that it has created, and the
// unfinished ones that it has deleted.
func (s state) keda(t *testing.T) (created, deleted int64) {
	var sj kedav1alpha1.ScaledJob
	require.NoError(t, yaml.UnmarshalStrict([]byte(s.manifest), &sj))
	sj.Namespace = namespace

	c := fake.NewClientBuilder().WithScheme(known).WithObjects(s.objects()...).Build()

	// as getScaledJobMetrics does with what the RabbitMQ scaler returns: both
	// numbers go through a quantity with three decimals
	const metric = "s0-rabbitmq-task_queue"
	target := quantity(s.target)
	queueLength, maxValue, _ := scaledjob.CalculateQueueLengthAndMaxValue(
		[]external_metrics.ExternalMetricValue{{MetricName: metric, Value: quantity(float64(s.ready))}},
		[]autoscalingv2.MetricSpec{{External: &autoscalingv2.ExternalMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: metric},
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &target},
		}}}, sj.MaxReplicaCount())
	isActive, scaleTo, maxScale, _ := scaledjob.IsScaledJobActive(
		[]scaledjob.ScalerMetrics{{QueueLength: queueLength, MaxValue: maxValue, IsActive: float64(s.ready) > s.activation}},
		sj.Spec.ScalingStrategy.MultipleScalersCalculation, sj.MinReplicaCount(), sj.MaxReplicaCount())

	before := jobNames(t, c)
	scale := call(executor.NewScaleExecutor, c, known, time.Minute, &events.FakeRecorder{}, &record.FakeRecorder{})[0].Interface().(executor.ScaleExecutor)
	for _, result := range call(scale.RequestJobScale, t.Context(), &sj, isActive, false, scaleTo, maxScale) {
		require.Zero(t, result.FieldByName("Error").Interface())
	}
	after := jobNames(t, c)
	for name := range after {
		if _, was := before[name]; !was {
			created++
		}
	}
	for name, finished := range before {
		if _, is := after[name]; !is && !finished {
			deleted++
		}
	}
	return created, deleted
}

// call calls a function of KEDA, whose parameters are others in each version: each gets
// the next of the given values that fits, or else its zero value.
func call(function any, values ...any) []reflect.Value {
	f := reflect.ValueOf(function)
	var in []reflect.Value
	for i := range f.Type().NumIn() {
		argument := reflect.Zero(f.Type().In(i))
		fits := func(v any) bool { return reflect.TypeOf(v).AssignableTo(argument.Type()) }
		if n := slices.IndexFunc(values, fits); n >= 0 {
			argument, values = reflect.ValueOf(values[n]), slices.Delete(values, n, n+1)
		}
		in = append(in, argument)
	}
	return f.Call(in)
}

// quantity is what KEDA's scalers make of a number.
func quantity(f float64) resource.Quantity { return resource.MustParse(fmt.Sprintf("%.3f", f)) }

// jobNames are all the Jobs that there are, and whether they are finished.
func jobNames(t *testing.T, c client.Client) map[string]bool {
	var list batchv1.JobList
	require.NoError(t, c.List(t.Context(), &list, client.InNamespace(namespace)))
	names := map[string]bool{}
	for _, j := range list.Items {
		names[j.Name] = len(j.Status.Conditions) > 0
	}
	return names
}

// sandboxJob is the manifest as the sandbox reads it.
func (s state) sandboxJob(t *testing.T) scaler.ScaledJob {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "scaledjob.yaml"), []byte(s.manifest), 0o600))
	spec, err := scaler.Load(dir)
	require.NoError(t, err, s.manifest)
	return spec
}

// count follows KEDA's documentation: which Jobs are unfinished, and which of
// those are pending.
func (s state) count(spec scaler.ScaledJob) (running, pending int64) {
	for _, j := range s.jobs {
		if j.finished != "" {
			continue
		}
		running++
		started := map[podState]bool{podNotReady: true, podReady: true, podSucceeded: true}
		if spec.PendingUntilReady {
			started = map[podState]bool{podReady: true}
		}
		if !started[j.pod] {
			pending++
		}
	}
	return running, pending
}

// expressible tells whether the sandbox can be in that state.
func (s state) expressible(spec scaler.ScaledJob) bool {
	for _, j := range s.jobs {
		if j.finished == "" && !spec.PendingUntilReady && j.pod != podNotReady && j.pod != podReady {
			return false
		}
	}
	return true
}

// sandboxJobs are the Jobs as the sandbox keeps them.
func (s state) sandboxJobs() []scaler.Job {
	status := map[batchv1.JobConditionType]scaler.Status{
		"": scaler.Running, batchv1.JobComplete: scaler.Succeeded, batchv1.JobFailed: scaler.Failed,
	}
	var jobs []scaler.Job
	for _, j := range s.jobs {
		jobs = append(jobs, scaler.Job{Status: status[j.finished], Ready: j.finished == "" && j.pod == podReady})
	}
	return jobs
}
