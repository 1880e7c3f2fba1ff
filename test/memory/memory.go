// Package memory tells how much memory a process has taken, and how much complex-app
// may take in its pod.
package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Limit returns what a folder of manifests allows complex-app, in bytes, and the
// variables that tell Go's runtime of it.
func Limit(deploy string) (bytes int, env map[string]string, err error) {
	manifest, err := os.ReadFile(filepath.Join(deploy, "complex-app.yaml"))
	if err != nil {
		return 0, nil, err
	}
	var d struct {
		Kind string
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Env       []struct{ Name, Value string }
						Resources struct{ Limits struct{ CPU, Memory string } }
					}
				}
			}
		}
	}
	for document := range strings.SplitSeq(string(manifest), "\n---\n") {
		if err := yaml.Unmarshal([]byte(document), &d); err != nil {
			return 0, nil, err
		}
		if d.Kind == "Deployment" {
			break
		}
	}
	env = map[string]string{}
	for _, c := range d.Spec.Template.Spec.Containers {
		if _, err := fmt.Sscanf(c.Resources.Limits.Memory, "%dMi", &bytes); err != nil {
			return 0, nil, fmt.Errorf("the limit %q: %w", c.Resources.Limits.Memory, err)
		}
		if strings.HasSuffix(c.Resources.Limits.CPU, "m") { // what Go makes of a part of a core
			env["GOMAXPROCS"] = "1"
		}
		for _, variable := range c.Env {
			if variable.Name == "GOMEMLIMIT" {
				env[variable.Name] = variable.Value
			}
		}
	}
	if len(env) != 2 {
		return 0, nil, fmt.Errorf("complex-app's limits are not as they are expected here: %v", env)
	}
	return bytes << 20, env, nil
}

// Peak returns the most bytes that a process has had in memory so far, without those of
// files, which the kernel takes back when memory is short.
func Peak(pid int) (bytes int, err error) {
	peak, err := Of(pid, "VmHWM")
	if err != nil {
		return 0, err
	}
	files, err := Of(pid, "RssFile")
	return peak - files, err
}

// Of returns a field of a process's /proc/…/status, in bytes: VmRSS is the memory that it
// has now, VmHWM the most that it has had.
func Of(pid int, field string) (bytes int, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), field+":")
	if _, err := fmt.Sscanf(rest, "%d kB", &bytes); err != nil {
		return 0, fmt.Errorf("%s in /proc/%d/status: %w", field, pid, err)
	}
	return bytes << 10, nil
}
