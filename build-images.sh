#!/usr/bin/env bash
# Builds the images of complex-app and processor-job, pushes them to a private
# registry, and prepares deploy/ so that "kubectl apply -f deploy/" is all that
# is left. Run it again whenever you like.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh build-images.sh

# What the environment says wins over registry.env, and that over the lines below.
given_repo=${REPO:-} given_login=${LOGIN:-} given_password=${PASSWORD:-} given_version=${VERSION:-}

# ------------------------------------------------------------------------------
# Edit these lines, or better write them into a file named registry.env beside this
# one: git tracks this file, so "git commit -a" would publish them; it ignores registry.env.
# Keep the quotes: a ' inside them is written '\''
REPO='<REPO>'         # the registry, e.g. my-registry.cr.cloud.ru or docker.io/me
LOGIN='<LOGIN>'       # the Key ID of your account, or the registry's user name
PASSWORD='<PASSWORD>' # the Key Secret of your account, or the registry's password
VERSION='1.0'         # the images' tag
# ------------------------------------------------------------------------------

# Also taken from the environment and from registry.env:
#   PULL_LOGIN, PULL_PASSWORD   an account that may only pull, for the cluster; else
#                               it gets the one above
#   PULL_SECRET=none            something else makes the Secret cloud-registry-secret
#   NAMESPACE                   where you will apply deploy/, when it is not "default"
#   PLATFORMS                   what the images run on, e.g. linux/amd64,linux/arm64
#                               (the engine's own platform when it is not set)
#   GOPROXY                     where the build gets Go modules from
#   BASE                        the image under the workers, when they need programs
#                               (docs/your-own-worker.md)
#   GO_IMAGE, APP_BASE          where to get the compiler's image and that under
#                               complex-app, when yours may not pull the usual ones

set -euo pipefail

# Attestations make a list of a one-platform image, and not every registry takes
# them.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1

SETTINGS='REPO LOGIN PASSWORD VERSION PULL_LOGIN PULL_PASSWORD PULL_SECRET NAMESPACE PLATFORMS GOPROXY BASE GO_IMAGE APP_BASE'
SERVICES='complex-app processor-job'

say() { printf '==> %s\n' "$*"; }
die() {
  printf 'build-images.sh: %s\n' "$*" >&2
  exit 1
}

last_line() { printf '%s\n' "$1" | tail -n 1; }

# find_folder: sets HERE to this script's folder, also when it was called through a
# symbolic link. With CDPATH, cd would print a path of its own.
find_folder() {
  local script=${BASH_SOURCE[0]} target
  while [ -L "$script" ]; do
    target=$(readlink "$script")
    case $target in
      /*) script=$target ;;
      *) script=$(dirname "$script")/$target ;;
    esac
  done
  HERE=$(CDPATH='' cd -- "$(dirname "$script")" && pwd -P)
}

# read_settings: reads registry.env, whose lines are NAME=value. They are no shell code,
# so a password stands there as it is. Quotes around the whole value are taken away.
read_settings() {
  local line name value tracked=$PASSWORD
  if [ -e "$HERE/registry.env" ]; then
    chmod go= "$HERE/registry.env" 2>/dev/null || true # it holds a password
    while IFS= read -r line || [ -n "$line" ]; do
      line=${line%$'\r'} line=${line#$'\xef\xbb\xbf'} # Windows' line ends, and its mark of UTF-8
      case $line in '' | '#'*) continue ;; esac
      name=${line%%=*} value=${line#*=}
      name=${name#export }
      [[ $line == *=* && " $SETTINGS " == *" $name "* ]] || die "registry.env has the line \"${name}…\": each must be NAME=value, with one of the names $SETTINGS"
      case $value in
        \"*\" | \'*\') [ ${#value} -lt 2 ] || value=${value:1:${#value}-2} ;;
      esac
      case $name in
        REPO | LOGIN | PASSWORD | VERSION) printf -v "$name" %s "$value" ;; # the environment's turn comes below
        *) [ -n "${!name:-}" ] || printf -v "$name" %s "$value" ;;
      esac
      [ "$name" != PASSWORD ] || tracked=''
    done <"$HERE/registry.env"
  fi
  REPO=${given_repo:-$REPO}
  LOGIN=${given_login:-$LOGIN}
  PASSWORD=${given_password:-$PASSWORD}
  [ -z "$given_version" ] || [ "$given_version" = "$VERSION" ] || say "VERSION is $given_version, as the environment says, not $VERSION"
  VERSION=${given_version:-$VERSION}
  PULL_LOGIN=${PULL_LOGIN:-} PULL_PASSWORD=${PULL_PASSWORD:-} PULL_SECRET=${PULL_SECRET:-}
  NAMESPACE=${NAMESPACE:-} PLATFORMS=${PLATFORMS:-} BASE=${BASE:-} GO_IMAGE=${GO_IMAGE:-} APP_BASE=${APP_BASE:-}
  [ -z "${GOPROXY:-}" ] || export GOPROXY
  export -n PASSWORD PULL_PASSWORD # no program below needs to see them
  TRACKED=''
  [ -n "$given_password" ] || [ -z "$tracked" ] || TRACKED=yes
}

check_settings() {
  local name value
  for name in REPO LOGIN PASSWORD VERSION; do
    value=${!name}
    if [ -z "$value" ] || [ "$value" = "<$name>" ]; then
      die "$name is not set: write the line $name=… into $HERE/registry.env, or set $name in the environment or at the head of $0"
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
  local label='^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
  [ -z "$NAMESPACE" ] || [[ $NAMESPACE =~ $label ]] || die "NAMESPACE is \"$NAMESPACE\": a namespace's name has lower-case letters, digits and \"-\" only, at most 63"
  [ -n "$PULL_LOGIN" ] || [ -z "$PULL_PASSWORD" ] || die "PULL_PASSWORD is set and PULL_LOGIN is not: set both, or neither"
  [ -z "$PULL_LOGIN" ] || [ -n "$PULL_PASSWORD" ] || die "PULL_LOGIN is set and PULL_PASSWORD is not: set both, or neither"
  case $PULL_SECRET in
    '') ;;
    none) [ -z "$PULL_LOGIN" ] || die "PULL_SECRET=none writes no Secret, so PULL_LOGIN has no use: leave one of them out" ;;
    *) die "PULL_SECRET is \"$PULL_SECRET\": the only value is none, for a cluster that gets cloud-registry-secret in another way" ;;
  esac

  # As Docker reads it: the first part is a host when it looks like one, and
  # otherwise a user of Docker Hub.
  REGISTRY=${REPO%%/*}
  case $REGISTRY in
    docker.io | index.docker.io) REGISTRY=https://index.docker.io/v1/ ;;
    *.* | *:* | localhost) ;;
    *) REGISTRY=https://index.docker.io/v1/ ;;
  esac
}

# check_tools: sets PODMAN when that is what the docker command runs.
check_tools() {
  command -v docker >/dev/null || die "the docker command is missing: install Docker Engine, https://docs.docker.com/engine/install/"
  local reason
  reason=$(docker version 2>&1) || die "the Docker engine does not answer: start it (sudo systemctl start docker) and let your user reach it (sudo usermod -aG docker \$USER, then log in again). Docker says: $(last_line "$reason")"
  PODMAN=''
  case $(docker --version 2>/dev/null) in
    'podman version '[1-3].*) die "this podman is too old for the Dockerfile's caches: version 4 or later is needed" ;;
    podman*) PODMAN=yes ;;
    *) docker buildx version >/dev/null 2>&1 || die "Docker's buildx plugin is missing: install docker-buildx-plugin (from Docker's packages) or docker-buildx (from Debian's or Ubuntu's), https://docs.docker.com/go/buildx/" ;;
  esac
  case $PODMAN,$PLATFORMS in
    yes,*,*) die "PLATFORMS names several platforms, for which podman is not enough: use Docker, or name one of them" ;;
  esac
}

# Everything temporary is in one folder: inside deploy/, so that a rename from it
# is atomic, and deeper than kubectl apply -f deploy/ looks. Its name ends with this
# process's id, so that a later run can tell what a killed one has left.
make_scratch() {
  local left
  for left in "$HERE"/deploy/.build-images.*; do
    if [ "${left##*.}" = $$ ] || ! ps -p "${left##*.}" >/dev/null 2>&1; then rm -rf "$left"; fi
  done
  scratch=$HERE/deploy/.build-images.$$
  (umask 077 && mkdir "$scratch") || die "cannot write to $HERE/deploy"
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# run WHAT COMMAND...: shows the command's output. When it fails, REASON is its last
# error line.
run() {
  local what=$1
  shift
  if "$@" 2>&1 | tee "$scratch/output"; then return; fi
  REASON=$(grep -iE 'error|denied|unauthorized|no such|fail' "$scratch/output" | tail -n 1) || REASON=$(tail -n 1 "$scratch/output")
  REASON="$what failed: $REASON"
  return 1
}

# log_in LOGIN PASSWORD OPTION...
log_in() {
  local login=$1 password=$2 reason
  shift 2
  say "logging in to $REGISTRY as $login"
  reason=$(printf '%s' "$password" | docker "$@" --username "$login" --password-stdin "$REGISTRY" 2>&1) ||
    die "the login to $REGISTRY as $login failed: $(last_line "$reason")"
}

# The pull-only account is tried out, too, but this machine goes on with the other one.
check_pull_login() {
  case $PULL_LOGIN,$PODMAN in
    ,*) ;;
    *,yes) log_in "$PULL_LOGIN" "$PULL_PASSWORD" login --authfile "$scratch/pull-login" ;;
    *) log_in "$PULL_LOGIN" "$PULL_PASSWORD" --config "$scratch/pull-login" login ;;
  esac
}

# read_digest: finds the DIGEST in the output of the last run.
read_digest() {
  DIGEST=$(sed -n 's/^.*digest: \(sha256:[0-9a-f]\{64\}\).*$/\1/p' "$scratch/output" | tail -n 1)
  [ -n "$DIGEST" ] || die "Docker did not say which digest it pushed"
}

# read_back REFERENCE: the DIGEST of what the registry has under this name.
read_back() {
  run "reading $1 back" docker buildx imagetools inspect "$1" --format 'digest: {{.Manifest.Digest}}{{println}}' || die "$REASON"
  read_digest
}

# A registry may refuse to write a tag twice, the same image included. accept_earlier
# REFERENCE CONTENT...: after such a push, fine when the registry has this content.
accept_earlier() {
  local reference=$1 part found
  shift
  found=$(docker buildx imagetools inspect --raw "$reference" 2>/dev/null) || die "$REASON"
  for part in "$@"; do
    case $found in
      *"$part"*) ;;
      *) die "$REASON. The registry has another image as $reference: if its tags are immutable, set VERSION to a new one" ;;
    esac
  done
  say "$reference is in the registry already, with the same content"
  read_back "$reference"
}

# name_commit leaves the commit in REVISION, and its time, not the clock's, for the files in
# the images. There is none outside of a clone.
name_commit() {
  REVISION=$(git -C "$HERE" rev-parse HEAD 2>/dev/null) || return 0
  SOURCE_DATE_EPOCH=$(git -C "$HERE" log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  [ -z "$(git -C "$HERE" status --porcelain -- services)" ] || REVISION+=-dirty
}

# build_and_push SERVICE PLATFORM REFERENCE: leaves the pushed digest in DIGEST.
# An empty PLATFORM is the engine's own.
build_and_push() {
  local service=$1 platform=$2 reference=$3
  local base=$BASE id build='buildx build --load --progress plain'
  [ -z "$PODMAN" ] || build=build
  [ "$service" != complex-app ] || base=$APP_BASE
  say "building $reference${platform:+ for $platform}"
  # shellcheck disable=SC2086 # a list of words
  run "building $service" docker $build ${platform:+--platform "$platform"} ${base:+--build-arg "BASE=$base"} ${GO_IMAGE:+--build-arg "GO_IMAGE=$GO_IMAGE"} \
    --build-arg "SERVICE=$service" --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" --build-arg GOPROXY --tag "$reference" "$HERE/services" || die "$REASON"
  say "pushing $reference"
  if [ -n "$PODMAN" ]; then # it prints no digest
    run "pushing $reference" docker push --digestfile "$scratch/digest" "$reference" || die "$REASON"
    DIGEST=$(cat "$scratch/digest")
  elif run "pushing $reference" docker push "$reference"; then
    read_digest
  else
    # the id is the digest of the image's configuration, which its manifest names
    id=$(docker image inspect --format '{{.Id}}' "$reference") || die "$REASON"
    accept_earlier "$reference" "$id"
  fi
}

# publish SERVICE: one image, or one for each platform and an index of them: a
# plain Docker engine can neither hold nor push several platforms under one name.
publish() {
  local service=$1 platform
  local image=$REPO/$service
  case $PLATFORMS in
    *,*)
      local sources='' digests=''
      for platform in ${PLATFORMS//,/ }; do
        build_and_push "$service" "$platform" "$image:$VERSION-${platform//\//-}"
        sources="$sources $image@$DIGEST" digests="$digests $DIGEST"
      done
      say "pushing $image:$VERSION for $PLATFORMS"
      # shellcheck disable=SC2086 # lists
      if run "pushing $image:$VERSION" docker buildx imagetools create --tag "$image:$VERSION" $sources; then
        read_back "$image:$VERSION"
      else
        accept_earlier "$image:$VERSION" $digests
      fi
      ;;
    *) build_and_push "$service" "$PLATFORMS" "$image:$VERSION" ;;
  esac
}

# change SCRIPT PATTERN: runs sed's script on each manifest with a line of the pattern,
# and keeps the file's owner and mode. It fails when there is none.
change() {
  local file changed=1
  for file in "$HERE"/deploy/*.yaml "$HERE"/deploy/*/*.yaml; do
    grep -qE "$2" "$file" || continue
    # errexit is off in here, as change is called with ||
    cp -p "$file" "$scratch/manifest" || die "cannot copy $file"
    sed -E "$1" "$file" >"$scratch/manifest" || die "cannot write to $scratch"
    mv -f "$scratch/manifest" "$file" || die "cannot write $file"
    changed=0
  done
  return $changed
}

# KEDA asks from another namespace, so its addresses of the broker's Service name the
# broker's. A server outside the cluster has no such address, and stays as it is.
write_namespace() {
  local line="^( *KEDA_[A-Z_]+: *[\"']?[a-z]+://[a-z0-9-]+\.)[a-z0-9-]+\.svc"
  change "s|$line|\1$NAMESPACE.svc|" "$line" ||
    say "NAMESPACE changes nothing in $HERE/deploy: no KEDA_…_URL there names a Service, as amqp://rabbitmq.default.svc:5672/ does"
}

# write_reference SERVICE REFERENCE: puts the reference into every image line of
# the service in deploy/, whatever registry, tag or digest stood there.
write_reference() {
  local service=$1 reference=$2
  local line="^([[:space:]]*(-[[:space:]]+)?image:[[:space:]]*)[\"']?([^[:space:]\"'#]*/)?$service([@:][^[:space:]\"'#]*)?[\"']?([[:space:]]*(#.*)?)\$"
  change "s|$line|\\1$reference\\5|" "$line" || die "no file in $HERE/deploy has a line \"image: …/$service:…\""
}

# The secret with which the cluster pulls the images. Login and password are in
# it as base64 only, so no character of theirs needs quoting. kubectl applies
# files in the order of their names: 00 comes before the pods that need it.
write_pull_secret() {
  local auth secret=$HERE/deploy/00-registry-secret.yaml
  if [ "$PULL_SECRET" = none ]; then
    rm -f "$secret" # kubectl apply -f deploy/ would put it back
    return
  fi
  auth=$(printf '%s:%s' "${PULL_LOGIN:-$LOGIN}" "${PULL_PASSWORD:-$PASSWORD}" | base64 | tr -d '\n')
  # readable by its owner only, from the start: under sudo that is the clone's owner
  cp -p "$HERE/build-images.sh" "$scratch/registry-secret"
  chmod 600 "$scratch/registry-secret"
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
  mv -f "$scratch/registry-secret" "$secret"
}

find_folder
read_settings
check_settings
check_tools
make_scratch
check_pull_login
log_in "$LOGIN" "$PASSWORD" login
name_commit
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
[ -z "$NAMESPACE" ] || write_namespace

say "pushed, and written into $HERE/deploy:"
for reference in $references; do printf '      %s\n' "${reference#*=}"; done
[ -z "$TRACKED" ] || say "WARNING: the key is in build-images.sh, which git tracks: \"git commit -a\" would publish it. Move REPO, LOGIN and PASSWORD to $HERE/registry.env, which git ignores"
say "next: kubectl apply${NAMESPACE:+ -n $NAMESPACE} -f $HERE/deploy/"
