package scaler

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// fields are what fieldRef finds in a process. A label or an annotation is looked up.
var fields = map[string]string{
	"metadata.name": PodName, "metadata.uid": PodName, "spec.serviceAccountName": "default",
	"spec.nodeName": "localhost", "status.hostIP": "127.0.0.1", "status.podIP": "127.0.0.1",
}

var labelField = regexp.MustCompile(`^metadata\.(labels|annotations)\['(.+)'\]$`)

func (m manifest) field(path string) (value string, ok bool) {
	if path == "metadata.namespace" {
		return cmp.Or(m.Metadata.Namespace, "default"), true
	}
	if match := labelField.FindStringSubmatch(path); match != nil {
		t := m.Spec.JobTargetRef.Template.Metadata
		return map[string]map[string]string{"labels": t.Labels, "annotations": t.Annotations}[match[1]][match[2]], true
	}
	value, ok = fields[path]
	return value, ok
}

func (j *ScaledJob) readEnv(c container, m manifest, known objects, must func(bool, string, ...any)) {
	j.Env = map[string]string{}
	for _, from := range c.EnvFrom {
		for kind, ref := range map[string]*source{"Secret": from.SecretRef, "ConfigMap": from.ConfigMapRef} {
			if ref == nil {
				continue
			}
			values, ok := known[kind+" "+ref.Name]
			must(ok || ref.Optional, "envFrom: there is no manifest of a %s %q", kind, ref.Name)
			for k, v := range values {
				j.Env[from.Prefix+k] = v
			}
		}
	}
	for _, e := range c.Env { // these win, as in Kubernetes
		if e.ValueFrom == nil {
			j.Env[e.Name] = expand(e.Value, j.Env)
			continue
		}
		ok := false
		for kind, ref := range map[string]*source{"Secret": e.ValueFrom.SecretKeyRef, "ConfigMap": e.ValueFrom.ConfigMapKeyRef} {
			if ref == nil {
				continue
			}
			ok = true
			value, found := known[kind+" "+ref.Name][ref.Key]
			must(found || ref.Optional, "env %s: there is no manifest of a %s %q with the key %q", e.Name, kind, ref.Name, ref.Key)
			if found {
				j.Env[e.Name] = value
			}
		}
		if ref := e.ValueFrom.FieldRef; ref != nil {
			j.Env[e.Name], ok = m.field(ref.FieldPath)
		}
		if e.ValueFrom.ResourceFieldRef != nil {
			ok = true
			j.Notes = append(j.Notes, fmt.Sprintf("the variable %s is not set: a process has no resources of its own", e.Name))
		}
		must(ok, "env %s is neither a value nor one of a Secret, a ConfigMap, or a field such as metadata.name", e.Name)
	}
}

// reference is what Kubernetes replaces in a variable, a command and its arguments.
var reference = regexp.MustCompile(`\$\$|\$\([-._a-zA-Z0-9]+\)`)

func expand(text string, env map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(match string) string {
		if match == "$$" {
			return "$"
		}
		if value, ok := env[match[2:len(match)-1]]; ok {
			return value
		}
		return match
	})
}

// readFolders reads what is mounted. A process cannot have a folder of its own at the
// path of the mount, so that path is replaced wherever a variable or an argument has it.
func (j *ScaledJob) readFolders(c container, volumes []volume, known objects, must func(bool, string, ...any)) {
	for _, mount := range c.VolumeMounts {
		i := slices.IndexFunc(volumes, func(v volume) bool { return v.Name == mount.Name })
		must(i >= 0, "the volume %q is mounted and not there", mount.Name)
		if i < 0 {
			continue
		}
		f := Folder{MountPath: filepath.Clean(mount.MountPath), Volume: mount.Name, SubPath: mount.SubPath}
		v, what := volumes[i], "each Job has an empty folder of its own"
		kind, from := "ConfigMap", v.ConfigMap
		if v.Secret != nil {
			kind, from = "Secret", v.Secret
		}
		if from != nil {
			name := cmp.Or(from.Name, from.SecretName)
			values, ok := known[kind+" "+name]
			must(ok || from.Optional, "the volume %s: there is no manifest of a %s %q", v.Name, kind, name)
			f.Files = maps.Clone(values)
			if len(from.Items) > 0 {
				f.Files = map[string]string{}
			}
			for _, item := range from.Items {
				f.Files[item.Path] = values[item.Key]
			}
			what = "each Job has a folder with the files of the " + kind + " " + name
		}
		j.Folders = append(j.Folders, f)
		if f.MountPath != "/tmp" { // which is TMPDIR
			j.Notes = append(j.Notes, fmt.Sprintf("volumeMounts: %s, to which %s leads in variables and arguments, but not in code", what, f.MountPath))
		}
	}
	if slices.ContainsFunc(j.Folders, func(f Folder) bool { return isBelow(c.WorkingDir, f.MountPath) }) {
		j.WorkingDir = c.WorkingDir
	} else if c.WorkingDir != "" {
		j.Notes = append(j.Notes, "workingDir makes no difference here")
	}
}

// word is a part of a text that may be a path, as in --scratch=/scratch or PATH.
var word = regexp.MustCompile(`[^\s=:,"']+`)

// relocate replaces the paths of mounts, and those below them, in a text.
func relocate(text string, mounts map[string]string) string {
	return word.ReplaceAllStringFunc(text, func(path string) string {
		longest := "" // a volume may be mounted within another
		for mount := range mounts {
			if isBelow(path, mount) && len(mount) > len(longest) {
				longest = mount
			}
		}
		return mounts[longest] + path[len(longest):]
	})
}

func isBelow(path, mount string) bool { return path == mount || strings.HasPrefix(path, mount+"/") }
