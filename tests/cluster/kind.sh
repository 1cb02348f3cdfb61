#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/process.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/installing.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/kind/artifacts.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/kind/engine.sh"

usage() {
  cat <<'END2'
kind.sh [--name NAME] COMMAND: manages a Kubernetes cluster with one node in Docker, by kind. Each NAME (default: dev) is a
separate cluster. If no Docker engine answers, the script starts one. If Docker Hub is not reachable, the script builds the
node image.

  up              create the cluster, unless it exists, and wait until pods can start and resolve names
  load IMAGE...   load images into the node: names of images in Docker, or files of docker save
  env             print variables for eval: KUBECONFIG, DOCKER_HOST, PATH with kubectl and kind
  images          build images of Redis and MongoDB (sync-operator-test/redis:7 and sync-operator-test/mongodb:6)
                  and print the paths of the two files, for load
  down            delete the cluster, and after the last one also stop the Docker engine

State: ${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/kind.NAME
END2
}

ready_limit=180
root=${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}
name=dev
network=sync-operator-kind # not the default network of kind, which other clusters may use
export KIND_EXPERIMENTAL_DOCKER_NETWORK=$network

# --- state folder and locks

# As in cluster.sh.
lock() {
  while true; do
    mkdir -p "$dir"
    exec 9<"$dir"
    flock 9
    [[ /dev/fd/9 -ef $dir ]] && return
  done
}

need_state() { [[ -e $dir/ready ]] || fail "\"$name\" is not up; run: $0 --name $name up"; }

# --- engine

# Uses the engine of this script if it is running, otherwise the default engine of docker. Users of this engine hold fd 8.
use_engine() {
  if engine_pid >/dev/null; then export DOCKER_HOST=unix://$engine_socket; fi
}

engine_answers() { command -v docker >/dev/null && timeout 10 docker version >/dev/null 2>&1; }

need_engine() {
  mkdir -p "$engine"
  exec 8<"$engine"
  if ! engine_pid >/dev/null && engine_answers; then return; fi
  until flock -s 8 && engine_pid >/dev/null; do
    flock 8
    engine_pid >/dev/null || { say "starting a Docker engine"; start_engine; }
  done
  use_engine
}

release_engine() {
  local left
  mkdir -p "$engine"
  exec 8<"$engine"
  # Another cluster uses the engine. Its `down` stops it.
  flock -n 8 || return 0
  if [[ -e $engine_state ]]; then
    engine_pid >/dev/null || start_engine
  fi
  use_engine
  command -v docker >/dev/null || return 0
  left=$(docker ps -aq --filter label=io.x-k8s.kind.cluster --filter "network=$network" 2>/dev/null) || return 0
  [[ ! $left ]] || return 0
  docker network rm "$network" >/dev/null 2>&1 || true
  stop_engine
}

# --- cluster

k() { kubectl --kubeconfig "$dir/kubeconfig" "$@"; }

reaches_hub() { curl -s -o /dev/null --max-time 5 https://registry-1.docker.io/v2/; }

answers() {
  [[ $(k get nodes --request-timeout=5s -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}' \
    2>/dev/null) == True ]]
}

# A busy machine may answer late.
still_answers() {
  local end=$((SECONDS + 30))
  until answers; do
    ((SECONDS < end)) || return 1
    sleep 0.5
  done
}

need_node_image() {
  local old
  if docker image inspect "$node_image" >/dev/null 2>&1; then return; fi
  mapfile -t old < <(docker images -q "${node_image%:*}")
  slowly "load the node image" 0 docker load -i "$node_archive"
  # An image that a cluster uses remains.
  ((${#old[@]} == 0)) || docker rmi -f "${old[@]}" >/dev/null 2>&1 || true
}

wait_ready() {
  local end=$((SECONDS + ready_limit))
  k wait --for=condition=Ready node --all --timeout="${ready_limit}s"
  until k get serviceaccount default --namespace default >/dev/null 2>&1; do
    ((SECONDS < end)) || fail "no default ServiceAccount after $ready_limit s"
    sleep 0.2
  done
  k --namespace kube-system rollout status --timeout="${ready_limit}s" daemonset/kube-proxy
  k --namespace kube-system rollout status --timeout="${ready_limit}s" deployment/coredns
}

# --- commands

up() {
  local parts=(kind) create=()
  lock
  PATH=$kind:$kubectl:$PATH
  use_engine
  if [[ -e $dir/ready ]] && engine_answers && still_answers; then return; fi
  engine_answers || parts+=(engine)
  if ! reaches_hub; then
    parts+=(node)
    create=(--image "$node_image")
  fi
  attended "$here/kind/install.sh" "${parts[@]}"
  need_engine
  [[ ! -e $dir/created ]] || say "the cluster \"$name\" does not answer; recreating it"
  rm -f "$dir"/{ready,kubeconfig}
  touch "$dir/created"
  kind delete cluster --name "$cluster" --kubeconfig "$dir/kubeconfig" >/dev/null 2>&1
  ((${#create[@]} == 0)) || need_node_image
  slowly "create the cluster $cluster" 0 \
    kind create cluster --name "$cluster" --kubeconfig "$dir/kubeconfig" "${create[@]}"
  slowly "wait for its pods" 0 wait_ready
  touch "$dir/ready"
}

down() {
  [[ -d $dir ]] || return 0
  [[ -e $dir/created || -z $(ls -A "$dir") ]] || fail "kind.sh did not create $dir, so it does not delete it"
  lock
  PATH=$kind:$PATH
  use_engine
  if [[ -e $dir/created ]]; then
    kind delete cluster --name "$cluster" --kubeconfig "$dir/kubeconfig" >/dev/null 2>&1 || true
  fi
  release_engine
  rm -rf "$dir"
  rmdir --ignore-fail-on-non-empty "$root"
}

load() { # IMAGE...
  local image
  PATH=$kind:$PATH
  use_engine
  for image; do
    if [[ -f $image ]]; then
      kind load image-archive --name "$cluster" "$image"
    else
      kind load docker-image --name "$cluster" "$image"
    fi
  done
}

images() {
  "$here/kind/install.sh" images >&2
  redis_archive
  mongodb_archive
}

print_env() {
  use_engine
  printf 'export %s\n' "KUBECONFIG=$(printf %q "$dir/kubeconfig")" \
    "KUBECACHEDIR=$(printf %q "$dir/kubectl-cache")" \
    "PATH=$(printf %q "$kind:$kubectl"):\$PATH"
  [[ ! ${DOCKER_HOST:-} ]] || printf 'export DOCKER_HOST=%q\n' "$DOCKER_HOST"
}

trap 'exit 143' TERM
trap 'exit 130' INT
if [[ ${1-} == --name ]]; then
  name=${2-}
  shift $(($# < 2 ? $# : 2))
fi
[[ $name =~ ^[a-z0-9][a-z0-9-]{0,29}$ ]] || fail "invalid NAME \"$name\": it may contain at most 30 of a-z, 0-9 and -"
dir=$root/kind.$name
cluster=sync-operator-$name
export KUBECACHEDIR=$dir/kubectl-cache
command=${1-}
(($#)) && shift

case $command in
  up | down | images) "$command" ;;
  load)
    (($#)) || fail "an IMAGE is required: the name of an image, or a file of docker save"
    need_state
    load "$@"
    ;;
  env) need_state && print_env ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
