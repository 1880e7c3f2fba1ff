package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// consumer is what KEDA scales on the queue: the ScaledJob, or the Deployment and
// its ScaledObject. It is measured as it is found on the cluster, or changed by a
// variant; restore puts back what was found.
type consumer struct {
	scaler, workload string // kind/name for kubectl; one and the same for a ScaledJob
	selector         string // of its pods
	found            map[string][]byte
	interval         time.Duration // between two of KEDA's looks at the queue
	max              int           // pods at a time
	image            string        // of the test's worker, once it is built
}

// variant is a way to get the consumer wrong, or right. Its zero value is the
// consumer as found, but for the work's time.
type variant struct {
	name       string
	strategy   string        // of the ScaledJob
	ready      bool          // with pendingPodConditions: [Ready]; only with a strategy
	protocol   string        // of the trigger
	interval   time.Duration // between two of KEDA's looks, if not as found
	early      bool          // acknowledge the message before the work
	claimDelay time.Duration // until the worker claims
	deaf       bool          // ignore SIGTERM
	grace      time.Duration // the pod's terminationGracePeriodSeconds
	hasty      bool          // the HPA scales in at once
	keep       bool          // all finished Jobs
	work       time.Duration // the load's, as claimDelay
}

// findConsumer looks for the one scaler in the namespace.
func findConsumer(ctx context.Context) (*consumer, error) {
	out, err := kubectl(ctx, "get", "scaledjobs,scaledobjects", "--output", "name")
	if err != nil {
		return nil, err
	}
	var c *consumer
	switch names := strings.Fields(string(out)); {
	case len(names) != 1:
		return nil, fmt.Errorf("this namespace has %d ScaledJobs and ScaledObjects, not one: kubectl apply -f deploy/ brings one", len(names))
	case strings.HasPrefix(names[0], "scaledjob."):
		_, name, _ := strings.Cut(names[0], "/")
		c = &consumer{scaler: names[0], workload: names[0], selector: "scaledjob.keda.sh/name=" + name}
	default:
		out, err := kubectl(ctx, "get", names[0], "--output", "jsonpath={.spec.scaleTargetRef.name}")
		if err != nil {
			return nil, err
		}
		c = &consumer{scaler: names[0], workload: "deployment.apps/" + string(out), selector: "app.kubernetes.io/name=" + string(out)}
	}
	c.found = map[string][]byte{}
	for _, object := range []string{c.scaler, c.workload} {
		if c.found[object], err = kubectl(ctx, "get", object, "--output", "json"); err != nil {
			return nil, err
		}
	}
	// with KEDA's defaults
	scaler := struct {
		Spec struct{ PollingInterval, MaxReplicaCount int }
	}{}
	scaler.Spec.PollingInterval, scaler.Spec.MaxReplicaCount = 30, 100
	if err := json.Unmarshal(c.found[c.scaler], &scaler); err != nil {
		return nil, err
	}
	c.interval, c.max = time.Duration(scaler.Spec.PollingInterval)*time.Second, scaler.Spec.MaxReplicaCount
	return c, nil
}

func (c *consumer) jobs() bool { return c.scaler == c.workload }

// apply changes the consumer into a variant of what was found.
func (c *consumer) apply(ctx context.Context, v variant) error {
	workload, err := c.decode(c.workload)
	if err != nil {
		return err
	}
	scaler := workload
	if !c.jobs() {
		if scaler, err = c.decode(c.scaler); err != nil {
			return err
		}
	}
	changeScaler(scaler, v)
	if err := c.changePod(ctx, workload, v); err != nil {
		return err
	}
	if err := replace(ctx, workload); err != nil || c.jobs() {
		return err
	}
	return replace(ctx, scaler)
}

func changeScaler(scaler object, v variant) {
	spec := scaler.field("spec")
	if v.strategy != "" {
		strategy := object{"strategy": v.strategy}
		if v.ready {
			strategy["pendingPodConditions"] = []string{"Ready"}
		}
		spec["scalingStrategy"] = strategy
	}
	if v.interval > 0 {
		spec["pollingInterval"] = int(v.interval.Seconds())
	}
	if v.keep {
		spec["successfulJobsHistoryLimit"] = 1000
	}
	if v.hasty {
		spec.field("advanced").field("horizontalPodAutoscalerConfig").field("behavior")["scaleDown"] = object{
			"stabilizationWindowSeconds": 0,
			"policies":                   []object{{"type": "Percent", "value": 100, "periodSeconds": 1}},
		}
	}
	switch metadata := spec.first("triggers").field("metadata"); v.protocol {
	case "amqp":
		metadata["protocol"], metadata["hostFromEnv"] = "amqp", "KEDA_RABBITMQ_URL"
	case "http":
		metadata["protocol"], metadata["hostFromEnv"] = "http", "KEDA_RABBITMQ_HTTP_URL"
	}
}

func (c *consumer) changePod(ctx context.Context, workload object, v variant) error {
	spec := workload.field("spec")
	if c.jobs() {
		spec = spec.field("jobTargetRef")
	}
	pod := spec.field("template").field("spec")
	container := pod.first("containers")
	container.env("PROCESSING_TIME", v.work.String())
	if v.grace > 0 {
		pod["terminationGracePeriodSeconds"] = int(v.grace.Seconds())
	}
	if !v.early && !v.deaf && v.claimDelay == 0 {
		return nil // the project's own worker
	}
	if c.image == "" {
		var err error
		if c.image, err = buildWorker(ctx); err != nil {
			return err
		}
	}
	container["image"] = c.image
	container.env("CLAIM_DELAY", v.claimDelay.String())
	container.env("ACKNOWLEDGE_EARLY", fmt.Sprint(v.early))
	container.env("IGNORE_SIGTERM", fmt.Sprint(v.deaf))
	return nil
}

// restore puts back what was found.
func (c *consumer) restore(ctx context.Context) error {
	var problems []error
	for name := range c.found {
		o, err := c.decode(name)
		if err == nil {
			err = replace(ctx, o)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

func (c *consumer) decode(name string) (object, error) {
	var o object
	if err := json.Unmarshal(c.found[name], &o); err != nil {
		return nil, err
	}
	delete(o, "status")
	delete(o.field("metadata"), "resourceVersion") // whatever there is now
	if !c.jobs() && name == c.workload {
		o.field("spec")["replicas"] = 0 // KEDA's; nothing is at work now
	}
	return o, nil
}

func replace(ctx context.Context, o object) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return input(ctx, body, "kubectl", "replace", "--filename", "-")
}

// object is a Kubernetes object of whatever version the cluster has.
type object map[string]any

// field returns the object in a field, which it adds when there is none.
func (o object) field(name string) object {
	switch inner := o[name].(type) {
	case object:
		return inner
	case map[string]any:
		return inner
	}
	inner := object{}
	o[name] = inner
	return inner
}

// first returns the first object of a list.
func (o object) first(name string) object {
	list, _ := o[name].([]any)
	if len(list) == 0 {
		return object{}
	}
	inner, _ := list[0].(map[string]any)
	return inner
}

// env sets a container's variable.
func (o object) env(name, value string) {
	list, _ := o["env"].([]any)
	for _, v := range list {
		if v, _ := v.(map[string]any); v["name"] == name {
			v["value"] = value
			return
		}
	}
	o["env"] = append(list, object{"name": name, "value": value})
}

// input runs a program that says nothing unless it fails.
func input(ctx context.Context, stdin []byte, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
