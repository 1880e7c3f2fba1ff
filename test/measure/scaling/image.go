package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// dockerfile needs no base image: both programs are static.
const dockerfile = `FROM scratch
COPY worker processor-job /
USER 65532
ENTRYPOINT ["/worker"]
`

// buildWorker builds the image of worker/ with processor-job beside it, pushes it
// to REPO, where build-images.sh has logged in, and returns its reference.
func buildWorker(ctx context.Context) (string, error) {
	repo := os.Getenv("REPO")
	if repo == "" {
		return "", errors.New("this needs an image of a worker that does it wrong: set REPO to your registry, after build-images.sh has logged in to it")
	}
	arch, err := kubectl(ctx, "get", "nodes", "--output", "jsonpath={.items[0].status.nodeInfo.architecture}")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "keda-p2-worker")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, program := range []string{"keda-p2/test/measure/scaling/worker", "keda-p2/services/processor-job"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, program)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+string(arch))
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", errors.New("go build " + program + ": " + string(out))
		}
	}
	image := strings.TrimSuffix(repo, "/") + "/keda-p2-test-worker"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return "", err
	}
	if err := input(ctx, nil, "docker", "build", "--platform", "linux/"+string(arch), "--tag", image, dir); err != nil {
		return "", err
	}
	if err := input(ctx, nil, "docker", "push", image); err != nil {
		return "", err
	}
	digest, err := exec.CommandContext(ctx, "docker", "image", "inspect", "--format", "{{index .RepoDigests 0}}", image).Output()
	if err != nil {
		return "", err
	}
	// by digest, as the tag may be on a node from an earlier time
	return strings.TrimSpace(string(digest)), nil
}
