package documents

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const root = "../.."

// readme is the most lines that a README may have: it is read before anything is tried.
const readme = 190

// files returns what git would track, below root.
func files(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "bin", "node_modules"}, d.Name()) {
			return fs.SkipDir
		}
		if !d.IsDir() {
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			all = append(all, name)
		}
		return nil
	})
	require.NoError(t, err)
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

func pages(t *testing.T) map[string]page {
	t.Helper()
	all := map[string]page{}
	for _, name := range files(t) {
		if strings.HasSuffix(name, ".md") {
			all[name] = parse(read(t, name))
		}
	}
	require.Contains(t, all, "README.md")
	require.Contains(t, all, "docs/README.md")
	return all
}

// sources is the text of everything but the documents.
func sources(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, name := range files(t) {
		switch filepath.Ext(name) {
		case ".go", ".yaml", ".yml", ".sh", ".conf", "":
			if !strings.HasPrefix(name, "test/documents/") {
				b.WriteString(read(t, name))
			}
		}
	}
	return b.String()
}

// problems is what a test has found, so that one run shows all of it.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

func (p problems) require(t *testing.T) {
	t.Helper()
	slices.Sort(p)
	require.Empty(t, strings.Join(slices.Compact(p), "\n"))
}

func TestForm(t *testing.T) {
	t.Parallel()
	var wrong problems
	for name, p := range pages(t) {
		if name == ".github/pull_request_template.md" {
			continue // a form: its title is the request's
		}
		for _, problem := range p.problems {
			wrong.add("%s, %s", name, problem)
		}
		if len(p.headings) == 0 {
			wrong.add("%s has no title", name)
		}
	}
	for _, name := range []string{"README.md", "README.ru.md"} {
		if lines := strings.Count(read(t, name), "\n"); lines > readme {
			wrong.add("%s has %d lines, at most %d are allowed", name, lines, readme)
		}
	}
	wrong.require(t)
}

func TestLinks(t *testing.T) {
	t.Parallel()
	var wrong problems
	all := pages(t)
	check := func(source, from, target string) {
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			return
		}
		file, fragment, _ := strings.Cut(target, "#")
		path := from
		if file != "" {
			path = filepath.Join(filepath.Dir(from), file)
		}
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			wrong.add("%s links to %s, which is not there", source, target)
		} else if fragment != "" && !slices.ContainsFunc(all[path].headings, func(h heading) bool { return h.anchor == fragment }) {
			wrong.add("%s links to %s, which has no such heading", source, target)
		}
	}
	listed := map[string]bool{}
	for name, p := range all {
		for _, target := range p.links {
			check(name, name, target)
			if file, _, _ := strings.Cut(target, "#"); name == "docs/README.md" {
				listed[filepath.Join("docs", file)] = true
			}
		}
	}
	for name := range all {
		if filepath.Dir(name) == "docs" && name != "docs/README.md" && !listed[name] {
			wrong.add("docs/README.md does not list %s", name)
		}
	}
	// what programs, manifests and scripts say of a page, written from the root
	mention := regexp.MustCompile(`\bdocs/[\w./-]+\.md(#[\w-]+)?`)
	for _, name := range files(t) {
		if ext := filepath.Ext(name); ext != ".md" && ext != ".js" {
			for _, target := range mention.FindAllString(read(t, name), -1) {
				check(name, "README.md", target)
			}
		}
	}
	wrong.require(t)
}

// A page and its Russian twin differ in their prose only.
func TestBothLanguagesSayTheSame(t *testing.T) {
	t.Parallel()
	comment := regexp.MustCompile(`(?m)\s*(#|//) .*$`)
	all := pages(t)
	var wrong problems
	twins := 0
	for name, russian := range all {
		if !strings.HasSuffix(name, ".ru.md") {
			continue
		}
		twins++
		english, ok := all[strings.TrimSuffix(name, ".ru.md")+".md"]
		require.True(t, ok, name)
		outline := func(p page) (all []string) {
			for _, h := range p.headings {
				all = append(all, fmt.Sprintf("a heading of level %d", h.level))
			}
			for _, block := range p.blocks {
				text := comment.ReplaceAllString(block.text, "")
				if block.language == "mermaid" {
					text = ""
				}
				all = append(all, "the block "+block.language+" "+text)
			}
			for _, table := range p.tables {
				for _, cell := range table {
					var code []string
					for _, m := range span.FindAllStringSubmatch(cell, -1) {
						code = append(code, m[1])
					}
					all = append(all, "a table's row "+strings.Join(code, " "))
				}
				all = append(all, "the end of a table")
			}
			return all
		}
		is, want := append(outline(russian), "the end"), append(outline(english), "the end")
		for i := range want {
			if is[i] != want[i] {
				wrong.add("%s has %q, and the English page %q", name, is[i], want[i])
				break
			}
		}
	}
	require.Equal(t, 3, twins)
	wrong.require(t)
}

// What a document names exists.
func TestNames(t *testing.T) {
	t.Parallel()
	var wrong problems
	source, makefile, configuration := sources(t), read(t, "Makefile"), read(t, "docs/configuration.md")
	var api struct{ Paths map[string]map[string]any }
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "services/complex-app/api/openapi.yaml")), &api))
	var (
		variable = regexp.MustCompile(`\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b`)
		target   = regexp.MustCompile(`\bmake ([a-z][a-z0-9-]+)`)
		route    = regexp.MustCompile(`\b(GET|POST|DELETE) (/[a-z/.-]*)`)
		path     = regexp.MustCompile(`(?:^|[\s"'(=/])((?:deploy|docs|services|test|\.ci|\.github)/[\w./-]*)(\*|…|\{)?`)
		test     = regexp.MustCompile(`\bTest[A-Z]\w+`)
		// made by scripts, or by the reader of your-own-worker.md
		made = regexp.MustCompile(`^deploy/00-registry-secret\.yaml$|thumbnails|program\.go$`)
	)
	for name, p := range pages(t) {
		code := p.code()
		for _, v := range variable.FindAllString(code, -1) {
			// those of the other page's worker, and OpenTelemetry's, are not ours
			if !strings.HasPrefix(name, "docs/your-own-worker") && !strings.HasPrefix(v, "OTEL_") &&
				!strings.Contains(configuration, "`"+v+"`") && !strings.Contains(source, v) {
				wrong.add("%s: no variable %s", name, v)
			}
		}
		for _, m := range target.FindAllStringSubmatch(code, -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				wrong.add("%s: no target make %s", name, m[1])
			}
		}
		for _, m := range route.FindAllStringSubmatch(code, -1) {
			if _, ok := api.Paths[m[2]][strings.ToLower(m[1])]; !ok && m[2] != "/metrics" { // on a port of its own
				wrong.add("%s: no route %s", name, m[0])
			}
		}
		for _, m := range path.FindAllStringSubmatch(code, -1) {
			if m[2] != "" || made.MatchString(m[1]) {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, strings.TrimRight(m[1], "."))); err != nil {
				wrong.add("%s: no file %s", name, m[1])
			}
		}
		for _, v := range test.FindAllString(code, -1) {
			if !strings.Contains(source, "func "+v) {
				wrong.add("%s: no test %s", name, v)
			}
		}
	}
	wrong.require(t)
}

// notRun marks a block whose commands no test runs.
const notRun = "# not run by a test"

// runs says which file runs a command of the README or the tutorial, and with which words.
var runs = []struct{ command, file, words string }{
	{"make demo", ".ci/run", "make demo"},
	{"make up", "test/ownworker/page_test.go", `"make up"`},
	{"make test", ".ci/run", "make test"},
	{"docker compose up --build", "test/compose/compose_test.go", `"compose", "up", "--build"`},
	{`curl -X POST "http://localhost:8080/send?`, "test/compose/compose_test.go", "/send?name=record"},
	{"curl http://localhost:8080/data", "test/compose/compose_test.go", "/data"},
	{"kubectl apply -f deploy/00-secret.yaml -f deploy/infrastructure/", "test/e2e/e2e_test.go", `"apply", "-f", "deploy/00-secret.yaml", "-f", "deploy/infrastructure/"`},
	{"kubectl apply -f deploy/", "test/e2e/e2e_test.go", `"apply", "-f", "deploy/"`},
	{"kubectl rollout status deployment/complex-app", "test/e2e/cluster_test.go", `"rollout", "status", "deployment/complex-app"`},
	{"kubectl port-forward service/complex-app-keda-service", "test/measure/scaling/cluster.go", `"port-forward", "service/complex-app-keda-service"`},
	{"kubectl get ", "test/e2e/e2e_test.go", `"kubectl", "get"`},
	{"kubectl run -it --rm curl-pod", "test/e2e/cluster_test.go", "curlimages/curl"},
	{"kubectl create namespace", "test/e2e/cluster_test.go", `"create", "namespace"`},
	{"kubectl config set-context", "test/e2e/cluster_test.go", `"config", "set-context", "--current", "--namespace"`},
	{`curl -X POST "http://complex-app-keda-service/send?`, "test/e2e/e2e_test.go", `curl -X POST "http://complex-app-keda-service/send?`},
	{`curl "http://complex-app-keda-service/data"`, "test/e2e/cluster_test.go", "/data"},
	{"exit", "test/e2e/e2e_test.go", "\nexit\n"},
	{"build-images.sh", "test/e2e/e2e_test.go", "./build-images.sh"},
	{"registry.env", "test/e2e/images_test.go", "registry.env"},
}

func TestCommandsAreRunOrMarked(t *testing.T) {
	t.Parallel()
	var wrong problems
	for _, r := range runs {
		if !strings.Contains(read(t, r.file), r.words) {
			wrong.add("%s does not say %s, so it may not run %s", r.file, r.words, r.command)
		}
	}
	home := regexp.MustCompile(`\$HOME/keda-p2/`)
	for _, name := range []string{"README.md", "docs/tutorial.md"} {
		for _, b := range parse(read(t, name)).blocks {
			if b.language != "sh" || strings.HasPrefix(b.text, notRun) {
				continue
			}
			text := regexp.MustCompile(`(?s)<<'END'\n.*?\nEND\n`).ReplaceAllString(b.text, "\n")
			for line := range strings.Lines(text) {
				line = home.ReplaceAllString(strings.TrimSpace(line), "")
				if !slices.ContainsFunc(runs, func(r struct{ command, file, words string }) bool { return strings.Contains(line, r.command) }) {
					wrong.add("%s: no test is known to run %q. Name it in runs, or begin the block with %q", name, line, notRun)
				}
			}
		}
	}
	wrong.require(t)
}

// docs/configuration.md has every variable of both services, with its default.
func TestEveryVariableIsDocumented(t *testing.T) {
	t.Parallel()
	var wrong problems
	rows := map[string]string{}
	for line := range strings.Lines(read(t, "docs/configuration.md")) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, m := range span.FindAllStringSubmatch(cells[1], -1) {
			rows[m[1]] = cells[2]
		}
	}
	for _, s := range []struct{ file, name, prefix string }{
		{"services/complex-app/settings.go", "settings", ""},
		{"services/processor-job/settings.go", "settings", ""},
		{"services/processor-job/work.go", "workSettings", ""},
		{"services/contract/queue/queue.go", "Config", "RABBITMQ_"},
		{"services/contract/records/records.go", "Config", "MONGODB_"},
		{"services/contract/config/config.go", "Server", "RABBITMQ_"},
		{"services/contract/config/config.go", "Server", "MONGODB_"},
	} {
		found := 0
		for _, f := range fields(t, s.file, s.name) {
			kind, ok := f.Type.(*ast.Ident)
			if len(f.Names) == 0 || !ok && reflect.TypeOf(f.Type) == reflect.TypeFor[*ast.SelectorExpr]() && f.Tag == nil || ok && kind.Name == "workSettings" {
				continue // a struct, which has its own line above
			}
			for _, n := range f.Names {
				if !ast.IsExported(n.Name) {
					continue
				}
				tag := reflect.StructTag("")
				if f.Tag != nil {
					tag = reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
				}
				name := strings.ToUpper(n.Name)
				if tag.Get("split_words") == "true" {
					name = strings.ToUpper(regexp.MustCompile(`([a-z])([A-Z])|([A-Z]+)([A-Z][a-z])`).ReplaceAllString(n.Name, "${1}${3}_${2}${4}"))
				}
				found++
				if row, ok := rows[s.prefix+name]; !ok {
					wrong.add("docs/configuration.md has no row for %s", s.prefix+name)
				} else if value := tag.Get("default"); value != "" && !strings.Contains(row, "`"+value+"`") {
					wrong.add("docs/configuration.md: the default of %s is %s", s.prefix+name, value)
				}
			}
		}
		require.Positive(t, found, s)
	}
	wrong.require(t)
}

func fields(t *testing.T, file, name string) (all []*ast.Field) {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
	require.NoError(t, err)
	ast.Inspect(tree, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok && spec.Name.Name == name {
			all = spec.Type.(*ast.StructType).Fields.List
		}
		return true
	})
	require.NotEmpty(t, all, "%s in %s", name, file)
	return all
}
