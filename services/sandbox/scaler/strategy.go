package scaler

import "math"

// Strategy is how many Jobs a ScaledJob wants for its messages.
type Strategy struct {
	Name       string  // default, custom, accurate or eager
	Target     float64 // messages for one Job
	Activation float64 // as many messages start no Job

	MinReplicas, MaxReplicas int64 // as KEDA takes them from the manifest

	Deduction         int64   // custom only
	RunningPercentage float64 // custom only: 1 is all of the running Jobs
}

// NewJobs returns how many Jobs KEDA 2.21 creates when it finds that many ready
// messages and unfinished Jobs, the pending ones among them. It follows
// pkg/scaling/scaledjob/metrics.go and pkg/scaling/executor/scale_jobs.go, step
// by step and under the names used there.
func (s Strategy) NewJobs(ready, running, pending int64) int64 {
	var queueLength, maxValue float64
	if float64(ready) > s.Activation {
		queueLength = float64(ready)
		maxValue = min(queueLength/s.Target, float64(s.MaxReplicas))
	} else if s.MinReplicas == 0 {
		return 0 // not active
	}
	scaleTo, maxScale := int64(math.Ceil(queueLength)), int64(math.Ceil(maxValue))

	var effectiveMaxScale int64
	if running < s.MinReplicas {
		scaleTo = s.MinReplicas - running
		effectiveMaxScale = scaleTo
	} else {
		effectiveMaxScale, scaleTo = s.effectiveMaxScale(maxScale, running-s.MinReplicas, pending, scaleTo)
	}
	return max(0, min(scaleTo, effectiveMaxScale))
}

func (s Strategy) effectiveMaxScale(maxScale, running, pending, scaleTo int64) (int64, int64) {
	switch s.Name {
	case "custom":
		return min(maxScale-s.Deduction-int64(float64(running)*s.RunningPercentage), s.MaxReplicas), scaleTo
	case "accurate":
		if maxScale+running-pending > s.MaxReplicas {
			return s.MaxReplicas - running, scaleTo
		}
		return maxScale - pending, scaleTo
	case "eager":
		return min(s.MaxReplicas-running-pending, maxScale), s.MaxReplicas
	default:
		return maxScale - running, scaleTo
	}
}
