#!/usr/bin/env bash
# A real Kubernetes with the real KEDA on this machine, with nothing but Docker, kubectl
# and Go: kind's, with a registry beside it. "make kind" and "make kind-down" call it.
#
#   up        cluster, and then deploy
#   cluster   the registry, Kubernetes and KEDA
#   deploy    build and push the images, start both servers and apply deploy/: on the
#             cluster and with the registry of KUBECONFIG, REPO, LOGIN and PASSWORD, which
#             may be any
#   env       print those four for kind's: eval "$(test/kind.sh env)" && make e2e
#   down      remove cluster and registry
#
# KIND_NODE chooses another Kubernetes, as an image of kind's, and KEDA_VERSION another
# KEDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLUSTER=keda-p2
REGISTRY=keda-p2-registry
PORT=${KIND_REGISTRY_PORT:-5001}
FOLDER=$PWD/bin/kind
# renovate: datasource=docker depName=kindest/node
KIND_NODE=${KIND_NODE:-kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5}
# renovate: datasource=github-releases depName=kedacore/keda extractVersion=^v(?<version>.+)$
KEDA_VERSION=${KEDA_VERSION:-2.21.0}
# renovate: datasource=docker depName=registry
REGISTRY_IMAGE=registry:3.0.0

say() { printf '==> %s\n' "$*"; }
die() {
  printf 'kind.sh: %s\n' "$*" >&2
  exit 1
}
kind() { "$(cd tools && GOWORK=off go tool -n kind)" "$@"; }

settings() {
  printf 'export KUBECONFIG=%q REPO=localhost:%s LOGIN=kind PASSWORD=kind\n' "$FOLDER/kubeconfig" "$PORT"
}

# registry starts one with a login, as a cloud's has. Only this machine reaches it, so the
# password, "kind", is no secret.
registry() {
  [ "$(docker inspect --format '{{.State.Running}} {{range .HostConfig.PortBindings}}{{range .}}{{.HostPort}}{{end}}{{end}}' "$REGISTRY" 2>/dev/null)" != "true $PORT" ] || return 0
  docker rm --force --volumes "$REGISTRY" >/dev/null 2>&1 || true # one that did not start, or has another port
  say "starting a registry on localhost:$PORT"
  # shellcheck disable=SC2016 # a hash, no variables
  echo 'kind:$2y$05$6qxiVBc9hpx4QF28irL.nudW9OXpfKwNa5PGhXDfsXcHCkFbxlS9e' >"$FOLDER/htpasswd"
  docker run --detach --restart always --name "$REGISTRY" --publish "127.0.0.1:$PORT:5000" \
    --volume "$FOLDER/htpasswd:/htpasswd:ro" --env REGISTRY_AUTH=htpasswd --env REGISTRY_AUTH_HTPASSWD_REALM=kind \
    --env REGISTRY_AUTH_HTPASSWD_PATH=/htpasswd "$REGISTRY_IMAGE" >/dev/null
}

kubernetes() {
  local node
  if kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
    kind export kubeconfig --name "$CLUSTER" --kubeconfig "$FOLDER/kubeconfig" || die "the cluster $CLUSTER is half made: run make kind-down first"
  else
    kind create cluster --name "$CLUSTER" --image "$KIND_NODE" --kubeconfig "$FOLDER/kubeconfig" --wait 3m
  fi
  docker network connect kind "$REGISTRY" 2>/dev/null || true # it is there already
  # What this machine calls localhost:PORT has another name inside the nodes.
  for node in $(kind get nodes --name "$CLUSTER"); do
    docker exec --interactive "$node" sh -c "mkdir -p /etc/containerd/certs.d/localhost:$PORT && cat >/etc/containerd/certs.d/localhost:$PORT/hosts.toml" <<TOML
[host."http://$REGISTRY:5000"]
TOML
  done
}

keda() {
  local deployment
  say "installing KEDA $KEDA_VERSION"
  # its definitions are too long for a client-side apply
  kubectl apply --server-side --force-conflicts -f "https://github.com/kedacore/keda/releases/download/v$KEDA_VERSION/keda-$KEDA_VERSION.yaml"
  for deployment in keda-operator keda-metrics-apiserver keda-admission; do
    kubectl -n keda rollout status "deployment/$deployment" --timeout 5m
  done
}

deploy() {
  local name
  for name in KUBECONFIG REPO LOGIN PASSWORD; do
    [ -n "${!name:-}" ] || die "$name is not set: deploy needs a cluster with KEDA in KUBECONFIG, and a registry that it can pull from in REPO, LOGIN and PASSWORD"
  done
  ./build-images.sh
  kubectl apply -f deploy/00-secret.yaml -f deploy/infrastructure/
  kubectl rollout status statefulset/rabbitmq --timeout 5m
  kubectl rollout status statefulset/mongodb --timeout 5m
  kubectl apply -f deploy/
  kubectl rollout status deployment/complex-app --timeout 3m
  kubectl wait --for=condition=Ready scaledjob/processor-job --timeout 2m
}

cluster() {
  mkdir -p "$FOLDER"
  docker info >/dev/null 2>&1 || die "the Docker engine does not answer: install or start it, and let your user reach it"
  command -v kubectl >/dev/null || die "kubectl is missing: https://kubernetes.io/docs/tasks/tools/"
  registry
  kubernetes
  eval "$(settings)"
  keda
}

case ${1:-} in
  up)
    cluster
    deploy
    say "ready. In this shell: eval \"\$(test/kind.sh env)\"; then the tutorial's steps from the curl pod on, or"
    say "kubectl port-forward service/complex-app-keda-service 8080:80, and open http://localhost:8080"
    say "deploy/ names images of this registry now: git checkout deploy/ puts the lines back. make kind-down removes the rest."
    ;;
  cluster | deploy) "$1" ;;
  env) settings ;;
  down)
    kind delete cluster --name "$CLUSTER" --kubeconfig "$FOLDER/kubeconfig"
    docker rm --force --volumes "$REGISTRY" >/dev/null
    rm -rf "$FOLDER"
    ;;
  *) die "say one of: up, cluster, deploy, env, down" ;;
esac
