package conformance

import (
	"fmt"
	"math/rand/v2"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	namespace = "default"
	name      = "processor-job"
)

// state is a ScaledJob's manifest and what KEDA finds in the cluster.
type state struct {
	manifest           string
	target, activation float64
	ready              int64 // messages
	jobs               []job
}

type job struct {
	finished batchv1.JobConditionType // empty while it is not
	pod      podState
}

type podState string

const (
	podMissing   podState = "no pod"
	podPending   podState = "pending"
	podNotReady  podState = "running"
	podReady     podState = "ready"
	podSucceeded podState = "succeeded"
	podFailed    podState = "failed"
)

func (j job) String() string { return fmt.Sprintf("%s(%s)", j.finished, j.pod) }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// newState draws small numbers that are close to each other: the cases lie where
// messages, Jobs and limits meet.
func newState(r *rand.Rand) state {
	s := state{
		ready:      int64(pick(r, 0, 1, r.IntN(6), r.IntN(15), r.IntN(40))),
		target:     pick(r, 1, 1, 1, 2, 3, 0.5, 1.5, 0.3, 0.7, 2.125),
		activation: pick(r, 0, 0, 0, 1, 4, 0.5),
	}
	lines := []string{}
	add := func(probability float64, line string) {
		if r.Float64() < probability {
			lines = append(lines, line)
		}
	}
	add(0.3, fmt.Sprintf("minReplicaCount: %d", r.IntN(6)))
	add(0.9, fmt.Sprintf("maxReplicaCount: %d", 1+r.IntN(pick(r, 12, 24))))
	add(0.5, fmt.Sprintf("successfulJobsHistoryLimit: %d", r.IntN(3)))
	add(0.5, fmt.Sprintf("failedJobsHistoryLimit: %d", r.IntN(3)))
	add(0.5, fmt.Sprintf("pollingInterval: %d", 1+r.IntN(30)))
	lines = append(lines, "scalingStrategy:")
	switch strategy := pick(r, "", "default", "custom", "accurate", "accurate", "accurate", "eager", "eager"); strategy {
	case "": // KEDA's default
		lines[len(lines)-1] += " {}"
	case "custom":
		lines = append(lines, "  strategy: custom",
			"  customScalingRunningJobPercentage: "+pick(r, `"0"`, `"0.3"`, `"0.5"`, `"1"`, `"1.5"`))
		// KEDA before 2.20 panics without it
		add(1, fmt.Sprintf("  customScalingQueueLengthDeduction: %d", r.IntN(9)-3))
		add(0.5, "  pendingPodConditions: [Ready]")
	default:
		lines = append(lines, "  strategy: "+strategy)
		add(0.5, "  pendingPodConditions: [Ready]")
	}
	s.manifest = fmt.Sprintf(`apiVersion: keda.sh/v1alpha1
kind: ScaledJob
metadata:
  name: %s
spec:
  %s
  triggers:
    - type: rabbitmq
      metadata: {protocol: amqp, queueName: task_queue, mode: QueueLength, value: "%g", activationValue: "%g"}
  jobTargetRef:
    backoffLimit: 0
    template:
      spec:
        restartPolicy: Never
        containers: [{name: processor-job, image: processor-job}]
`, name, strings.Join(lines, "\n  "), s.target, s.activation)

	// in half of the states every pod runs, as in the sandbox
	pods := []podState{podNotReady, podReady}
	if r.IntN(2) == 0 {
		pods = append(pods, podMissing, podPending, podSucceeded, podFailed)
	}
	for range r.IntN(1 + r.IntN(14)) {
		s.jobs = append(s.jobs, job{pod: pick(r, pods...)})
	}
	for range r.IntN(4) {
		s.jobs = append(s.jobs, pick(r, job{batchv1.JobComplete, podSucceeded}, job{batchv1.JobFailed, podFailed},
			job{batchv1.JobComplete, podMissing}, job{batchv1.JobFailed, podMissing}))
	}
	r.Shuffle(len(s.jobs), func(i, k int) { s.jobs[i], s.jobs[k] = s.jobs[k], s.jobs[i] })
	return s
}

// objects are the state's Jobs and pods, and those of another ScaledJob.
func (s state) objects() []client.Object {
	var all []client.Object
	for i, j := range s.jobs {
		all = append(all, j.objects(name, i)...)
	}
	return append(all, job{pod: podPending}.objects("other", 0)...)
}

func (j job) objects(scaledJob string, i int) []client.Object {
	o := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: fmt.Sprintf("%s-%d", scaledJob, i),
		Labels: map[string]string{"scaledjob.keda.sh/name": scaledJob},
	}}
	if j.finished != "" {
		o.Status.Conditions = []batchv1.JobCondition{{Type: j.finished, Status: corev1.ConditionTrue}}
	}
	if j.finished == batchv1.JobComplete {
		o.Status.CompletionTime = &metav1.Time{Time: metav1.Unix(int64(1_800_000_000+i), 0).Time}
	}
	if j.pod == podMissing {
		return []client.Object{o}
	}
	phase := map[podState]corev1.PodPhase{
		podPending: corev1.PodPending, podNotReady: corev1.PodRunning, podReady: corev1.PodRunning,
		podSucceeded: corev1.PodSucceeded, podFailed: corev1.PodFailed,
	}
	ready := corev1.ConditionFalse
	if j.pod == podReady {
		ready = corev1.ConditionTrue
	}
	return []client.Object{o, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: o.Name + "-pod", Labels: map[string]string{"job-name": o.Name}},
		Status: corev1.PodStatus{Phase: phase[j.pod], Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: ready},
		}},
	}}
}
