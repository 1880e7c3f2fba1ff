package ownworker

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"keda-p2/services/sandbox/process"
)

const (
	root = "../.."
	page = "docs/your-own-worker.md"
	twin = "docs/your-own-worker.ru.md"
	// commandTimeout bounds a block: the first one compiles everything.
	commandTimeout = 10 * time.Minute
	stopGrace      = 30 * time.Second
)

// reader follows the page in a copy of the repository.
type reader struct {
	dir      string
	up       *process.Process // make up, nil while it does not run
	url      string           // of its complex-app
	rabbitMQ string           // its port
}

func TestTheTwinHasTheSameBlocks(t *testing.T) {
	t.Parallel()
	require.Equal(t, read(t, page), read(t, twin))
}

// read returns the page's blocks without their places.
func read(t *testing.T, path string) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	all, err := blocks(string(text))
	require.NoError(t, err)
	require.NotEmpty(t, all)
	for i := range all {
		all[i].line = 0
	}
	return all
}

func TestThePage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, page))
	require.NoError(t, err)
	all, err := blocks(string(text))
	require.NoError(t, err)
	r := &reader{dir: t.TempDir()}
	copyTree(t, r.dir)
	t.Cleanup(r.stop)
	// short pauses with RabbitMQ 4.3
	r.edit(t, "deploy/00-config.yaml", block{text: "\n" +
		"   RABBITMQ_QUEUE: task_queue\n" +
		"+  RABBITMQ_RETRY_MIN: 100ms\n"})

	for _, b := range all {
		name := strings.ReplaceAll(strings.SplitN(b.text, "\n", 2)[0], "/", "-")
		if !t.Run(fmt.Sprintf("line %d, %.40s", b.line, name), func(t *testing.T) { r.follow(t, b) }) {
			return // what comes next builds on it
		}
	}
}

// follow does what the page's reader does with a block, and checks what came of it.
func (r *reader) follow(t *testing.T, b block) {
	first := b.first()
	switch {
	case b.language == "diff":
		r.edit(t, first, b)
	case b.language != "sh":
		path := filepath.Join(r.dir, first)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(b.text), 0o644))
		if filepath.Ext(path) == ".go" {
			r.run(t, "test -z \"$(gofmt -l "+first+")\"")
		}
	case first == "as root":
		install(t, b.text)
	case strings.HasPrefix(first, "needs "):
		r.run(t, "bash -n <<'BLOCK'\n"+b.text+"BLOCK\n")
	case first == "in one terminal":
		r.stop()
		r.start(t, b.text)
	case first == "in another terminal":
		if r.up == nil {
			r.start(t, "make up")
		}
		text := strings.ReplaceAll(b.text, "http://localhost:8080", r.url)
		r.run(t, strings.ReplaceAll(text, "RABBITMQ_PORT=5672", "RABBITMQ_PORT="+r.rabbitMQ))
	default:
		r.stop()
		r.run(t, b.text)
	}
	r.check(t, b)
}

// check checks what the page says about a block.
func (r *reader) check(t *testing.T, b block) {
	switch {
	case strings.Contains(b.text, "go vet ./services/processor-job"):
		r.run(t, "CGO_ENABLED=0 go build -trimpath -o bin/rows ./services/processor-job")
		rest := exec.Command("go", "test", "./services/processor-job") // on the servers of this test
		rest.Dir = r.dir
		out, err := rest.CombinedOutput()
		require.NoError(t, err, "%s", out)
		t.Run("rows", func(t *testing.T) { testRows(t, filepath.Join(r.dir, "bin/rows")) })
	case strings.Contains(b.text, "/dead-letters"):
		r.eventually(t, "one two three done 1; bad failed 5 the dictionary is not available; never failed 1 not a text; panic failed 5 work panicked: no such word")
		var dead []struct {
			Body, Reason string
			Attempts     int
		}
		found := map[string]int{}
		require.Eventually(t, func() bool { // a record says that it failed a moment before its message is there
			err := r.get("/dead-letters", &dead)
			for _, d := range dead {
				found[d.Reason] = d.Attempts
			}
			return err == nil && len(found) == 3
		}, patience, time.Second)
		require.Equal(t, map[string]int{"the dictionary is not available": 5, "not a text": 1, "work panicked: no such word": 5}, found)
	case b.language == "sh" && strings.Contains(b.text, "send.py"):
		var all []struct{ ID, Name, Status string }
		require.Eventually(t, func() bool {
			return r.get("/data?name=with-an-id", &all) == nil && len(all) == 1 && all[0].ID == "order-17" && all[0].Status == "done"
		}, patience, time.Second)
		require.Eventually(t, func() bool {
			return r.get("/data?name=from-python", &all) == nil && len(all) == 1 && all[0].ID != "" && all[0].Status == "done"
		}, patience, time.Second)
	case strings.Contains(b.text, "amqp-publish --"):
		var all []struct{ Status string }
		require.Eventually(t, func() bool {
			return r.get("/data?name=from-the-shell", &all) == nil && len(all) == 1 && all[0].Status == "done"
		}, patience, time.Second)
	case strings.Contains(b.text, "deploy/complex-app.yaml"):
		testNames(t, r.dir)
	case strings.Contains(b.text, "bin/sandbox demo"):
		// the program that runs wc, in the way of the first one
		t.Run("wc", func(t *testing.T) { testGood(t, newWorker(t, filepath.Join(r.dir, "bin/thumbnails/processor-job"), 5)) })
	}
}

// eventually waits until the records of the page's first events are as they should be.
func (r *reader) eventually(t *testing.T, want string) {
	t.Helper()
	var last string
	require.Eventually(t, func() bool {
		var all []struct {
			Content, Status, Error string
			Attempts               int
		}
		if r.get("/data?name=try", &all) != nil {
			return false
		}
		found := make([]string, len(all))
		for i, record := range all {
			found[i] = strings.TrimSpace(fmt.Sprintf("%s %s %d %s", record.Content, record.Status, record.Attempts, record.Error))
		}
		last = strings.Join(found, "; ")
		wanted := strings.Split(want, "; ")
		slices.Sort(found)
		slices.Sort(wanted)
		return slices.Equal(found, wanted)
	}, patience, time.Second, "%s", &lazy{&last})
}

// lazy shows a text as it is in the end.
type lazy struct{ text *string }

func (l *lazy) String() string { return *l.text }

func (r *reader) get(path string, into any) error {
	answer, err := http.Get(r.url + path)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	return json.NewDecoder(answer.Body).Decode(into)
}

func (r *reader) edit(t *testing.T, name string, b block) {
	t.Helper()
	path := filepath.Join(r.dir, name)
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	after, err := patch(string(before), b)
	require.NoError(t, err, name)
	require.NoError(t, os.WriteFile(path, []byte(after), 0o644))
	if filepath.Ext(path) == ".go" {
		r.run(t, "test -z \"$(gofmt -l "+name+")\"")
	}
}

func (r *reader) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = r.dir
	for _, v := range os.Environ() { // the sandbox starts its own servers
		if !strings.HasPrefix(v, "RABBITMQ_") && !strings.HasPrefix(v, "MONGODB_") && !strings.HasPrefix(v, "PWD=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

func (r *reader) run(t *testing.T, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := r.command(ctx, script)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", script, out)
	require.NoError(t, err)
}

var (
	openURL  = regexp.MustCompile(`(?m)^Open (http://\S+)/ in a browser`)
	rabbitMQ = regexp.MustCompile(`(?m)^RabbitMQ +127\.0\.0\.1:(\d+)`)
)

// start runs make up until stop.
func (r *reader) start(t *testing.T, script string) {
	t.Helper()
	log := filepath.Join(r.dir, "up.log")
	require.NoError(t, os.RemoveAll(log))
	var err error
	r.up, err = process.Start(r.command(context.Background(), script), log)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(log)
		url, port := openURL.FindSubmatch(text), rabbitMQ.FindSubmatch(text)
		if url == nil || port == nil {
			return false
		}
		r.url, r.rabbitMQ = string(url[1]), string(port[1])
		return true
	}, commandTimeout, 100*time.Millisecond)
}

func (r *reader) stop() {
	if r.up != nil {
		r.up.Stop(stopGrace)
		r.up = nil
	}
}

// install runs apt-get as the page says, on a machine where it can.
func install(t *testing.T, script string) {
	t.Helper()
	if exec.Command("/usr/bin/python3", "-c", "import pika").Run() == nil {
		if _, err := exec.LookPath("amqp-publish"); err == nil {
			return
		}
	}
	require.Zero(t, os.Getuid(), "install the packages by hand:\n%s", script)
	out, err := exec.Command("bash", "-euc", "apt-get update -qq\n"+script).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// copyTree copies the repository without what git or make has put there.
func copyTree(t *testing.T, to string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); name == ".git" || name == "node_modules" || path == filepath.Join(root, "bin") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, strings.TrimPrefix(path, root))
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if os.IsPermission(err) {
			return nil // the registry's pull secret
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, info.Mode())
	}))
}

// testNames checks that the second worker and its complex-app share no name with the
// first ones, and that build-images.sh builds it.
func testNames(t *testing.T, dir string) {
	first, second := names(t, dir, "processor-job.yaml", "complex-app.yaml"), names(t, dir, "thumbnails.yaml", "thumbnails-app.yaml")
	first["RABBITMQ_QUEUE"], first["MONGODB_COLLECTION"] = "task_queue", "sample-collection" // from 00-config.yaml
	require.Len(t, second, len(first))
	require.Equal(t, second["RABBITMQ_QUEUE"], second["queueName"])
	for what, name := range first {
		if what == "image of Deployment" {
			require.Equal(t, name, second[what])
			continue
		}
		require.NotEmpty(t, second[what], what)
		require.NotEqual(t, name, second[what], what)
	}
	script, err := os.ReadFile(filepath.Join(dir, "build-images.sh"))
	require.NoError(t, err)
	require.Contains(t, string(script), "\nSERVICES='complex-app processor-job thumbnails'\n")
	base, err := os.ReadFile(filepath.Join(dir, "deploy", "Kustomization"))
	require.NoError(t, err)
	require.Contains(t, string(base), "\n  - thumbnails.yaml\n  - thumbnails-app.yaml\n")
}

// names returns all that must differ between two workers, by what it names.
func names(t *testing.T, dir string, files ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(dir, "deploy", file))
		require.NoError(t, err)
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var o struct {
				Kind     string
				Metadata struct {
					Name   string
					Labels map[string]string
				}
				Spec struct {
					Selector any
					Template any
					Triggers []struct {
						Metadata          struct{ QueueName string }
						AuthenticationRef struct{ Name string }
					}
					JobTargetRef any
				}
			}
			require.NoError(t, yaml.Unmarshal([]byte(document), &o))
			found[o.Kind] = o.Metadata.Name
			if label, ok := o.Metadata.Labels["app.kubernetes.io/name"]; ok {
				found["label of "+o.Kind] = label
			}
			if o.Spec.Selector != nil {
				found["selector of "+o.Kind] = fmt.Sprint(o.Spec.Selector)
			}
			if len(o.Spec.Triggers) > 0 {
				found["queueName"] = o.Spec.Triggers[0].Metadata.QueueName
				found["authenticationRef"] = o.Spec.Triggers[0].AuthenticationRef.Name
			}
			for what, line := range map[string]string{
				"RESULTS":        `- name: RESULTS\n *value: (\S+)`,
				"RABBITMQ_QUEUE": `- {name: RABBITMQ_QUEUE, value: (\S+)}`, "MONGODB_COLLECTION": `- {name: MONGODB_COLLECTION, value: (\S+)}`,
			} {
				if value := regexp.MustCompile(`(?m)^ *` + line).FindStringSubmatch(document); value != nil {
					require.Contains(t, []string{"", value[1]}, found[what], "worker and complex-app differ")
					found[what] = value[1]
				}
			}
			if image := regexp.MustCompile(`(?m)^ *image: (\S+)`).FindStringSubmatch(document); image != nil {
				found["image of "+o.Kind] = image[1]
			}
		}
	}
	return found
}
