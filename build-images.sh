#!/usr/bin/env bash
# Builds the images of complex-app and processor-job, pushes them to a private
# registry, and prepares deploy/ so that "kubectl apply -f deploy/" is all that
# is left. Run it again whenever you like.

# What the environment says wins over the lines below.
given_repo=${REPO:-} given_login=${LOGIN:-} given_password=${PASSWORD:-} given_version=${VERSION:-}

# ------------------------------------------------------------------------------
# Edit these lines. Keep the quotes: a ' inside them is written '\''
REPO='<REPO>'         # the registry, e.g. my-registry.cr.cloud.ru or docker.io/me
LOGIN='<LOGIN>'       # the Key ID of your account, or the registry's user name
PASSWORD='<PASSWORD>' # the Key Secret of your account, or the registry's password
VERSION='1.0'         # the images' tag
# ------------------------------------------------------------------------------

# Also taken from the environment:
#   PLATFORMS  what the images run on, e.g. linux/amd64,linux/arm64
#              (the Docker engine's own platform when it is not set)
#   GOPROXY    where the build gets Go modules from
#   BASE       the image under the workers, when they need programs (docs/your-own-worker.md)

set -euo pipefail

REPO=${given_repo:-$REPO}
LOGIN=${given_login:-$LOGIN}
PASSWORD=${given_password:-$PASSWORD}
VERSION=${given_version:-$VERSION}
PLATFORMS=${PLATFORMS:-}
export -n PASSWORD # no program below needs to see it

# Attestations make a list of a one-platform image, and not every registry takes
# them.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SERVICES='complex-app processor-job'

say() { printf '==> %s\n' "$*"; }
die() {
  printf 'build-images.sh: %s\n' "$*" >&2
  exit 1
}

last_line() { printf '%s\n' "$1" | tail -n 1; }

# Everything temporary is in one folder: inside deploy/, so that a rename from it
# is atomic, and deeper than kubectl apply -f deploy/ looks.
make_scratch() {
  scratch=$(mktemp -d "$HERE/deploy/.build-images.XXXXXX") || die "cannot write to $HERE/deploy"
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# run WHAT COMMAND...: shows the command's output, and repeats its last error
# line as the reason when it fails.
run() {
  local what=$1 reason
  shift
  if ! "$@" 2>&1 | tee "$scratch/output"; then
    reason=$(grep -iE 'error|denied|unauthorized|no such|fail' "$scratch/output" | tail -n 1) || reason=$(tail -n 1 "$scratch/output")
    die "$what failed: $reason"
  fi
}

check_settings() {
  local name value
  for name in REPO LOGIN PASSWORD VERSION; do
    value=${!name}
    if [ -z "$value" ] || [ "$value" = "<$name>" ]; then
      die "$name is not set: edit the line $name=… at the head of $0, or set $name in the environment"
    fi
  done

  # An address that was copied from a browser is fine.
  REPO=${REPO#http://}
  REPO=${REPO#https://}
  while [ "${REPO%/}" != "$REPO" ]; do REPO=${REPO%/}; done
  local reference='^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$'
  [[ $REPO =~ $reference ]] || die "REPO is \"$REPO\": it must be a registry's address in lower case, such as my-registry.cr.cloud.ru, localhost:5000 or docker.io/me"
  local tag='^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$'
  [[ $VERSION =~ $tag ]] || die "VERSION is \"$VERSION\": an image's tag has letters, digits, \"_\", \".\" and \"-\" only"

  # As Docker reads it: the first part is a host when it looks like one, and
  # otherwise a user of Docker Hub.
  REGISTRY=${REPO%%/*}
  case $REGISTRY in
    docker.io | index.docker.io) REGISTRY=https://index.docker.io/v1/ ;;
    *.* | *:* | localhost) ;;
    *) REGISTRY=https://index.docker.io/v1/ ;;
  esac
}

check_tools() {
  command -v docker >/dev/null || die "the docker command is missing: install Docker Engine, https://docs.docker.com/engine/install/"
  local reason
  reason=$(docker version --format '{{.Server.Version}}' 2>&1) || die "the Docker engine does not answer: start it (sudo systemctl start docker) and let your user reach it (sudo usermod -aG docker \$USER, then log in again). Docker says: $(last_line "$reason")"
  docker buildx version >/dev/null 2>&1 || die "Docker's buildx plugin is missing: install docker-buildx-plugin (from Docker's packages) or docker-buildx (from Debian's or Ubuntu's), https://docs.docker.com/go/buildx/"
}

log_in() {
  say "logging in to $REGISTRY as $LOGIN"
  local reason
  reason=$(printf '%s' "$PASSWORD" | docker login --username "$LOGIN" --password-stdin "$REGISTRY" 2>&1) ||
    die "the login to $REGISTRY as $LOGIN failed: $(last_line "$reason")"
}

# read_digest: finds the DIGEST in the output of the last run.
read_digest() {
  DIGEST=$(sed -n 's/^.*digest: \(sha256:[0-9a-f]\{64\}\).*$/\1/p' "$scratch/output" | tail -n 1)
  [ -n "$DIGEST" ] || die "Docker did not say which digest it pushed"
}

# build_and_push SERVICE PLATFORM REFERENCE: leaves the pushed digest in DIGEST.
# An empty PLATFORM is the engine's own.
build_and_push() {
  local service=$1 platform=$2 reference=$3
  local base=${BASE:-}
  [ "$service" != complex-app ] || base='' # it needs none
  say "building $reference${platform:+ for $platform}"
  run "building $service" docker buildx build --load --progress plain ${platform:+--platform "$platform"} ${base:+--build-arg "BASE=$base"} \
    --build-arg "SERVICE=$service" --build-arg "VERSION=$VERSION" --build-arg GOPROXY --tag "$reference" "$HERE/services"
  say "pushing $reference"
  run "pushing $reference" docker push "$reference"
  read_digest
}

# publish SERVICE: one image, or one for each platform and an index of them: a
# plain Docker engine can neither hold nor push several platforms under one name.
publish() {
  local service=$1 platform
  local image=$REPO/$service
  case $PLATFORMS in
    *,*)
      local sources=''
      for platform in ${PLATFORMS//,/ }; do
        build_and_push "$service" "$platform" "$image:$VERSION-${platform//\//-}"
        sources="$sources $image@$DIGEST"
      done
      say "pushing $image:$VERSION for $PLATFORMS"
      # shellcheck disable=SC2086 # a list of references
      run "pushing $image:$VERSION" docker buildx imagetools create --tag "$image:$VERSION" $sources
      run "reading $image:$VERSION back" docker buildx imagetools inspect "$image:$VERSION" --format 'digest: {{.Manifest.Digest}}{{println}}'
      read_digest
      ;;
    *) build_and_push "$service" "$PLATFORMS" "$image:$VERSION" ;;
  esac
}

# write_reference SERVICE REFERENCE: puts the reference into every image line of
# the service in deploy/, whatever registry, tag or digest stood there.
write_reference() {
  local service=$1 reference=$2 file written=''
  local line="^([[:space:]]*(-[[:space:]]+)?image:[[:space:]]*)[\"']?([^[:space:]\"'#]*/)?$service([@:][^[:space:]\"'#]*)?[\"']?([[:space:]]*(#.*)?)\$"
  for file in "$HERE"/deploy/*.yaml "$HERE"/deploy/*/*.yaml; do
    grep -qE "$line" "$file" || continue
    cp -p "$file" "$scratch/manifest" # keeps the file's mode
    sed -E "s|$line|\\1$reference\\5|" "$file" >"$scratch/manifest"
    mv -f "$scratch/manifest" "$file"
    written=$file
  done
  [ -n "$written" ] || die "no file in $HERE/deploy has a line \"image: …/$service:…\""
}

# The secret with which the cluster pulls the images. Login and password are in
# it as base64 only, so no character of theirs needs quoting. kubectl applies
# files in the order of their names: 00 comes before the pods that need it.
write_pull_secret() {
  local auth
  auth=$(printf '%s:%s' "$LOGIN" "$PASSWORD" | base64 | tr -d '\n')
  (
    umask 077 # readable by its owner only, from the start
    cat >"$scratch/registry-secret" <<YAML
# Written by build-images.sh. It holds a password: git ignores this file.
apiVersion: v1
kind: Secret
metadata:
  name: cloud-registry-secret
  labels:
    app.kubernetes.io/part-of: keda-p2
type: kubernetes.io/dockerconfigjson
stringData:
  .dockerconfigjson: '{"auths":{"$REGISTRY":{"auth":"$auth"}}}'
YAML
  )
  mv -f "$scratch/registry-secret" "$HERE/deploy/00-registry-secret.yaml"
}

check_settings
check_tools
make_scratch
log_in
# Both are pushed before a manifest changes: a failure leaves deploy/ as it was.
references=''
for service in $SERVICES; do
  publish "$service"
  references="$references $service=$REPO/$service:$VERSION@$DIGEST"
done
for reference in $references; do
  write_reference "${reference%%=*}" "${reference#*=}"
done
write_pull_secret

say "pushed, and written into $HERE/deploy:"
for reference in $references; do printf '      %s\n' "${reference#*=}"; done
say "next: kubectl apply -f $HERE/deploy/"
