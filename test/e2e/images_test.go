//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"keda-p2/test/tutorial"
)

// clone is a clone of the project with a registry.env, in which build-images.sh runs.
type clone struct{ tutorial.Shell }

// TestBuildImages runs build-images.sh as its users do, with the Docker engine and the
// registry of REPO. No cluster is needed.
func TestBuildImages(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		run  func(*testing.T, clone)
	}{
		{"registry.env is read, and git ignores it", registryEnv},
		{"a key in the tracked script works, with a warning", trackedKey},
		{"the environment wins, and a VERSION that does is named", environmentWins},
		{"the cluster gets an account that may only pull", pullOnly},
		{"a Secret that something else makes is not put back", otherSecret},
		{"sh, CDPATH and a symbolic link", otherCalls},
		{"under sudo the clone stays its owner's", underSudo},
		{"what a killed run has left is ignored and cleared away", killed},
		{"git pull keeps the references", pulled},
		{"a registry whose tags are immutable", immutable},
		{"the same commit gives the same image", reproducible},
		{"podman behind the name docker", podman},
		{"mistakes are named before anything is built", mistakes},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newClone(t)) })
	}
}

func newClone(t *testing.T) clone {
	t.Helper()
	for _, name := range []string{"REPO", "LOGIN", "PASSWORD"} {
		require.NotEmpty(t, os.Getenv(name), "set %s: REPO, LOGIN and PASSWORD name a registry to push to", name)
	}
	tutorial.NeedProgram(t, "docker")
	dir := filepath.Join(t.TempDir(), "keda-p2")
	c := clone{tutorial.Shell{Dir: dir, Env: []string{"REPO=", "LOGIN=", "PASSWORD=", "VERSION=" + version, "NAMESPACE="}}}
	copyTree(t, dir)
	c.git(t, "init", "--quiet", "--initial-branch=main")
	c.git(t, "add", ".")
	c.git(t, "commit", "--quiet", "--message=before")
	c.settings(t, "REPO="+os.Getenv("REPO"), "LOGIN="+os.Getenv("LOGIN"), "PASSWORD="+os.Getenv("PASSWORD"))
	return c
}

// copyTree copies what build-images.sh uses.
func copyTree(t *testing.T, dir string) {
	t.Helper()
	root := tutorial.Root(t)
	for _, folder := range []string{"deploy", "services"} {
		require.NoError(t, os.CopyFS(filepath.Join(dir, folder), os.DirFS(filepath.Join(root, folder))))
	}
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "deploy", "00-registry-secret.yaml")))
	for name, mode := range map[string]fs.FileMode{"build-images.sh": 0o755, ".gitignore": 0o644} {
		content, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, mode))
	}
}

func (c clone) git(t *testing.T, args ...string) string {
	t.Helper()
	return c.Run(t, "git", append([]string{"-c", "user.name=test", "-c", "user.email=test@example.com"}, args...)...)
}

// settings writes registry.env.
func (c clone) settings(t *testing.T, lines ...string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(c.Dir, "registry.env"), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

// build runs the script with further variables: what it printed.
func (c clone) build(t *testing.T, env ...string) (string, error) {
	t.Helper()
	s := c.Shell
	s.Env = append(s.Env[:len(s.Env):len(s.Env)], env...)
	return s.Try(t.Context(), "", "./build-images.sh")
}

func (c clone) mustBuild(t *testing.T, env ...string) string {
	t.Helper()
	out, err := c.build(t, env...)
	require.NoError(t, err)
	return out
}

// login is the one in the Secret with which the cluster pulls.
func (c clone) login(t *testing.T) string {
	t.Helper()
	secret, err := os.ReadFile(c.secret())
	require.NoError(t, err)
	auth := regexp.MustCompile(`"auth":"([^"]+)"`).FindSubmatch(secret)
	require.NotNil(t, auth, "%s", secret)
	login, err := base64.StdEncoding.DecodeString(string(auth[1]))
	require.NoError(t, err)
	return string(login)
}

func (c clone) secret() string { return filepath.Join(c.Dir, "deploy", "00-registry-secret.yaml") }

// requireReferences checks that both manifests name what was pushed.
func (c clone) requireReferences(t *testing.T, repo, version string) {
	t.Helper()
	for _, service := range []string{"complex-app", "processor-job"} {
		manifest, err := os.ReadFile(filepath.Join(c.Dir, "deploy", service+".yaml"))
		require.NoError(t, err)
		require.Regexp(t, `image: `+regexp.QuoteMeta(repo+"/"+service+":"+version)+`@sha256:[0-9a-f]{64}\s`, string(manifest))
	}
}

func registryEnv(t *testing.T, c clone) {
	// a password as it is, and lines as an editor of Windows writes them
	c.settings(t, "# mine\r", "REPO=https://"+os.Getenv("REPO")+"/\r", "", "export LOGIN='"+os.Getenv("LOGIN")+"'\r", "PASSWORD="+os.Getenv("PASSWORD"))
	out := c.mustBuild(t)
	require.NotContains(t, out, "WARNING")
	require.Contains(t, out, "next: kubectl apply -f ")
	c.requireReferences(t, os.Getenv("REPO"), version)
	require.Equal(t, os.Getenv("LOGIN")+":"+os.Getenv("PASSWORD"), c.login(t))
	require.Equal(t, []string{"M deploy/complex-app.yaml", "M deploy/processor-job.yaml", "M deploy/scaledobject/processor.yaml"}, c.changes(t))
}

// changes are what git commit -a would commit, and what it would leave lying about.
func (c clone) changes(t *testing.T) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(c.git(t, "status", "--porcelain")) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

func trackedKey(t *testing.T, c clone) {
	require.NoError(t, os.Remove(filepath.Join(c.Dir, "registry.env")))
	for _, name := range []string{"REPO", "LOGIN", "PASSWORD"} {
		edit(t, filepath.Join(c.Dir, "build-images.sh"), "\n"+name+"='<"+name+">'", "\n"+name+"="+quote(os.Getenv(name)))
	}
	require.Contains(t, c.mustBuild(t), "WARNING: the key is in build-images.sh, which git tracks")
	require.Equal(t, os.Getenv("LOGIN")+":"+os.Getenv("PASSWORD"), c.login(t))
}

func environmentWins(t *testing.T, c clone) {
	c.settings(t, "REPO=nowhere.example.com", "LOGIN=nobody", "PASSWORD=wrong", "VERSION=9")
	out := c.mustBuild(t, "REPO="+os.Getenv("REPO"), "LOGIN="+os.Getenv("LOGIN"), "PASSWORD="+os.Getenv("PASSWORD"), "NAMESPACE=team-a")
	require.Contains(t, out, "VERSION is "+version+", as the environment says, not 9")
	require.Contains(t, out, "next: kubectl apply -n team-a -f ")
	c.requireReferences(t, os.Getenv("REPO"), version)
	config, err := os.ReadFile(filepath.Join(c.Dir, "deploy", "00-config.yaml"))
	require.NoError(t, err)
	require.Contains(t, string(config), "\n  KEDA_RABBITMQ_URL: amqp://rabbitmq.team-a.svc:5672/\n")
	require.Contains(t, string(config), "\n  KEDA_RABBITMQ_HTTP_URL: http://rabbitmq.team-a.svc:15672/\n")
}

func pullOnly(t *testing.T, c clone) {
	out, err := c.build(t, "PULL_LOGIN=puller", "PULL_PASSWORD=wrong")
	require.ErrorContains(t, err, "as puller failed")
	require.NotContains(t, out, "building")
	// the registry has one account, so the same one, told apart by its order
	out = c.mustBuild(t, "PULL_LOGIN="+os.Getenv("LOGIN"), "PULL_PASSWORD="+os.Getenv("PASSWORD"))
	require.Equal(t, 2, strings.Count(out, "logging in to"))
	require.Equal(t, os.Getenv("LOGIN")+":"+os.Getenv("PASSWORD"), c.login(t))
}

func otherSecret(t *testing.T, c clone) {
	c.mustBuild(t)
	require.FileExists(t, c.secret())
	c.mustBuild(t, "PULL_SECRET=none")
	require.NoFileExists(t, c.secret())
}

func otherCalls(t *testing.T, c clone) {
	elsewhere := c.Shell
	elsewhere.Dir = t.TempDir()
	elsewhere.Env = append(elsewhere.Env, "CDPATH="+filepath.Dir(c.Dir))
	require.NoError(t, os.Symlink(filepath.Join(c.Dir, "build-images.sh"), filepath.Join(elsewhere.Dir, "first")))
	require.NoError(t, os.Symlink("first", filepath.Join(elsewhere.Dir, "build.sh")))
	for _, call := range [][]string{{"./build.sh"}, {"sh", filepath.Join(c.Dir, "build-images.sh")}} {
		c.git(t, "checkout", "--quiet", "deploy")
		elsewhere.Run(t, call[0], call[1:]...)
		c.requireReferences(t, os.Getenv("REPO"), version)
	}
	// from the folder above, by a relative path that CDPATH knows
	elsewhere.Dir = filepath.Dir(c.Dir)
	c.git(t, "checkout", "--quiet", "deploy")
	elsewhere.Run(t, "sh", "keda-p2/build-images.sh")
	c.requireReferences(t, os.Getenv("REPO"), version)
}

func underSudo(t *testing.T, c clone) {
	require.Zero(t, os.Getuid(), "only root can run this case: it stands for sudo in another user's clone")
	const nobody = 65534
	require.NoError(t, filepath.WalkDir(c.Dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}))
	c.mustBuild(t)
	require.NoError(t, filepath.WalkDir(filepath.Join(c.Dir, "deploy"), func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		require.Equal(t, uint32(nobody), info.Sys().(*syscall.Stat_t).Uid, path)
		return nil
	}))
	info, err := os.Stat(c.secret())
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
}

// killed kills a run with SIGKILL while it waits for a registry.
func killed(t *testing.T, c clone) {
	bin := fakeDocker(t, `case "$1" in login) touch "$0.reached"; sleep 600;; esac`)
	cmd := exec.Command("./build-images.sh")
	cmd.Dir, cmd.Env = c.Dir, append(append(os.Environ(), c.Env...), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, cmd.Start())
	tutorial.Eventually(t, time.Minute, func(collect *assert.CollectT) {
		require.FileExists(collect, filepath.Join(bin, "docker.reached"))
	})
	left := func() []string {
		found, err := filepath.Glob(filepath.Join(c.Dir, "deploy", ".build-images.*"))
		require.NoError(t, err)
		return found
	}
	require.Len(t, left(), 1)
	require.NoError(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
	require.Error(t, cmd.Wait())
	require.NoError(t, os.WriteFile(filepath.Join(left()[0], "registry-secret"), []byte("password"), 0o600))
	require.Empty(t, c.changes(t), "git add . would publish what is left")
	c.mustBuild(t)
	require.Empty(t, left())
}

func pulled(t *testing.T, c clone) {
	upstream := clone{tutorial.Shell{Dir: filepath.Join(t.TempDir(), "upstream")}}
	c.Run(t, "git", "clone", "--quiet", c.Dir, upstream.Dir)
	c.git(t, "remote", "add", "origin", upstream.Dir)
	c.git(t, "fetch", "--quiet", "origin")
	c.git(t, "branch", "--set-upstream-to=origin/main")
	c.mustBuild(t)
	edit(t, filepath.Join(upstream.Dir, "deploy", "complex-app.yaml"), "replicas: 2", "replicas: 3")
	upstream.git(t, "commit", "--quiet", "--all", "--message=later")
	c.git(t, "pull", "--quiet", "--autostash")
	c.requireReferences(t, os.Getenv("REPO"), version)
	manifest, err := os.ReadFile(filepath.Join(c.Dir, "deploy", "complex-app.yaml"))
	require.NoError(t, err)
	require.Contains(t, string(manifest), "replicas: 3")
	c.mustBuild(t)
}

// immutable puts a server before the registry that writes no tag twice.
func immutable(t *testing.T, c clone) {
	registry, _, _ := strings.Cut(os.Getenv("REPO"), "/")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	tags := regexp.MustCompile(`^/v2/.*/manifests/([^:]+)$`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && tags.MatchString(r.URL.Path) {
			request, err := http.NewRequestWithContext(r.Context(), http.MethodHead, "http://"+registry+r.URL.Path, nil)
			if err == nil {
				request.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json")
				request.SetBasicAuth(os.Getenv("LOGIN"), os.Getenv("PASSWORD"))
				var answer *http.Response
				if answer, err = http.DefaultClient.Do(request); err == nil {
					answer.Body.Close()
					if answer.StatusCode == http.StatusOK {
						w.Header().Set("Content-Type", "application/json")
						w.WriteHeader(http.StatusBadRequest)
						fmt.Fprint(w, `{"errors":[{"code":"TAG_INVALID","message":"The image tag already exists and cannot be overwritten because the repository is immutable."}]}`)
						return
					}
				}
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	defer server.Close()
	repo := strings.Replace(os.Getenv("REPO"), registry, strings.Replace(server.Listener.Addr().String(), "127.0.0.1", "localhost", 1), 1)
	fresh := "e2e-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	for _, platforms := range []string{"", "linux/amd64,linux/amd64"} { // another one's base would have to be pulled
		settings := []string{"REPO=" + repo, "VERSION=" + fresh + strconv.Itoa(len(platforms)), "PLATFORMS=" + platforms}
		c.git(t, "checkout", "--quiet", "deploy", "services")
		c.mustBuild(t, settings...)
		pushed := c.git(t, "diff", "deploy")
		c.git(t, "checkout", "--quiet", "deploy")
		out := c.mustBuild(t, settings...)
		require.Contains(t, out, "is in the registry already, with the same content")
		require.Equal(t, pushed, c.git(t, "diff", "deploy"))

		edit(t, filepath.Join(c.Dir, "services", "Dockerfile"), `licenses="Apache-2.0"`, `licenses="another image"`)
		_, err := c.build(t, settings...)
		require.ErrorContains(t, err, "if its tags are immutable, set VERSION to a new one")
		require.ErrorContains(t, err, "cannot be overwritten")
		require.Equal(t, pushed, c.git(t, "diff", "deploy"), "a failed run has changed the manifests")
	}
}

// reproducible builds a commit twice, from clones of different age: with what the builder
// has cached of earlier builds, and with nothing.
// An engine whose BuildKit is older than 0.11 gives the image itself the clock's time:
// there, the layers are all that can be alike.
func reproducible(t *testing.T, c clone) {
	const epoch = "1700000000"
	shell := c.Shell
	shell.Env = append(slices.Clone(shell.Env), "SOURCE_DATE_EPOCH="+epoch)
	var built []string
	for i, caching := range []string{"--no-cache=false", "--no-cache"} {
		require.NoError(t, filepath.WalkDir(c.Dir, func(path string, _ fs.DirEntry, err error) error {
			require.NoError(t, err)
			then := time.Unix(int64(1_000_000_000*(i+1)), 0)
			return os.Chtimes(path, then, then)
		}))
		tag := "keda-p2-reproducible:" + strconv.Itoa(i)
		t.Cleanup(func() { _, _ = shell.Try(context.WithoutCancel(t.Context()), "", "docker", "image", "rm", tag) })
		shell.Run(t, "docker", "buildx", "build", caching, "--load", "--build-arg", "SERVICE=processor-job", "--build-arg", "VERSION=v1",
			"--build-arg", "REVISION=abc", "--build-arg", "GOPROXY", "--tag", tag, "services")
		shown := "{{json .RootFS.Layers}} {{json .Config.Labels}}"
		if strings.HasPrefix(shell.Run(t, "docker", "image", "inspect", "--format", "{{.Created}}", tag), "2023-11-14T22:13:20") {
			shown += " {{.Id}}"
		} else {
			t.Log("this engine's BuildKit is older than 0.11: only the layers and labels are compared")
		}
		built = append(built, shell.Run(t, "docker", "image", "inspect", "--format", shown, tag))
	}
	require.Equal(t, built[0], built[1])
	require.Contains(t, built[0], `"org.opencontainers.image.revision":"abc"`)
}

// podman stands before docker: it takes no buildx option, and prints no digest.
func podman(t *testing.T, c clone) {
	bin := fakeDocker(t, `
case "$1" in
  --version) echo "podman version 4.3.1"; exit;;
  buildx) echo "Error: no buildx here" >&2; exit 125;;
  version) [ $# = 1 ] || { echo "Error: template: :1:9: nil pointer evaluating *define.Version.Version" >&2; exit 125; };;
  build) shift; exec "$docker" buildx build --load "$@";;
  push) [ "$2" = --digestfile ] || exit 125
    "$docker" push "$4" >"$0.out" 2>&1 || { cat "$0.out"; exit 125; }
    sed -n 's/^.*digest: \(sha256:[0-9a-f]*\).*$/\1/p' "$0.out" | tr -d '\n' >"$3"
    echo "Writing manifest to image destination" >&2; exit;;
esac`)
	path := "PATH=" + bin + ":" + os.Getenv("PATH")
	c.mustBuild(t, path)
	c.requireReferences(t, os.Getenv("REPO"), version)
	_, err := c.build(t, path, "PLATFORMS=linux/amd64,linux/arm64")
	require.ErrorContains(t, err, "podman is not enough")
}

// fakeDocker returns a folder with a docker command that runs a script first, and then
// the real one, whose path the script has as $docker.
func fakeDocker(t *testing.T, script string) string {
	t.Helper()
	docker, err := exec.LookPath("docker")
	require.NoError(t, err)
	bin := t.TempDir()
	text := "#!/bin/sh\ndocker=" + quote(docker) + "\n" + script + "\nexec \"$docker\" \"$@\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "docker"), []byte(text), 0o700))
	return bin
}

func mistakes(t *testing.T, c clone) {
	for name, test := range map[string]struct {
		env  []string
		file []string
		want string
	}{
		"nothing set":          {nil, nil, "REPO is not set: write the line REPO=… into "},
		"an unknown setting":   {nil, []string{"PASWORD=x"}, `registry.env has the line "PASWORD…"`},
		"no equals sign":       {nil, []string{"REPO my-registry"}, `registry.env has the line "REPO my-registry…"`},
		"a namespace":          {[]string{"REPO=r.example.com", "LOGIN=l", "PASSWORD=p", "NAMESPACE=Team A"}, nil, `NAMESPACE is "Team A"`},
		"half a pull account":  {[]string{"REPO=r.example.com", "LOGIN=l", "PASSWORD=p", "PULL_LOGIN=l"}, nil, "PULL_LOGIN is set and PULL_PASSWORD is not"},
		"a pull password only": {[]string{"REPO=r.example.com", "LOGIN=l", "PASSWORD=p", "PULL_PASSWORD=l"}, nil, "PULL_PASSWORD is set and PULL_LOGIN is not"},
		"another pull secret":  {[]string{"REPO=r.example.com", "LOGIN=l", "PASSWORD=p", "PULL_SECRET=mine"}, nil, `PULL_SECRET is "mine": the only value is none`},
		"a wrong password":     {[]string{"REPO=" + os.Getenv("REPO"), "LOGIN=nobody", "PASSWORD=s3cret"}, nil, "as nobody failed"},
	} {
		t.Run(name, func(t *testing.T) {
			c.settings(t, test.file...)
			out, err := c.build(t, test.env...)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), "s3cret")
			require.NotContains(t, out, "building")
			require.Empty(t, c.changes(t))
		})
	}
}
