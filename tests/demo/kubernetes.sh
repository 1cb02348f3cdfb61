#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../cluster/paths.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/paths.sh"
# shellcheck source-path=SCRIPTDIR source=../cluster/installing.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/installing.sh"

usage() {
  cat <<'END'
kubernetes.sh choose | up | env | down: manages the Kubernetes of `make demo`. CLUSTER=local (the default) uses the first of
these that works:
  1. build    if the control plane is already built: it starts in seconds
  2. envtest  if KUBEBUILDER_ASSETS is a folder with etcd, kube-apiserver and kubectl, or its archive is already downloaded
  3. kind     if kind and Docker, Podman or nerdctl work, and a node image is present
  4. envtest  if its archive (about 60 MB) can be downloaded
  5. kind     if its node image (about 400 MB) can be downloaded
  6. build    otherwise: builds the control plane from Go modules
CLUSTER=build, envtest or kind selects one. The script ignores KUBECONFIG, because its cluster may be in production.

  choose  print the selected Kubernetes, and the reason
  up      start it, unless it is running
  env     print variables for eval: KUBECONFIG, REDIS_URL, MONGODB_URI, PATH with kubectl
  down    delete the kind cluster of the demo; `cluster.sh --name demo down` stops the others
END
}

CLUSTER=${CLUSTER:-local}
state=${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/demo-operator
kind_cluster=sync-operator-demo
oldest=33 # minor version of the oldest supported Kubernetes 1.x
# envtest-releases.yaml of controller-tools has the hashes.
envtest_version=v1.36.2
envtest_sha512=ea743186c8a799f5cf8faf16969f86189d003cb7d130e0ac4b58789f1e5748dcf30ebe91c837a10d5ac415383da3e10b9e64d65785c938c23e739781cfb76f08
envtest_url=https://github.com/kubernetes-sigs/controller-tools/releases/download/envtest-$envtest_version/envtest-$envtest_version-linux-amd64.tar.gz
envtest=$cache/envtest-$envtest_version

servers() { "$here/cluster.sh" --name demo "$@"; }
answers() { curl -sfIL -o /dev/null --connect-timeout 3 --max-time 8 "$1"; }
reaches_hub() { curl -s -o /dev/null --connect-timeout 3 --max-time 8 https://registry-1.docker.io/v2/; }

# --- selection

is_built() { [[ -x $control_plane/kube-apiserver && -x $control_plane/kubectl ]]; }

has_control_plane() { # FOLDER
  local program
  for program in etcd kube-apiserver kubectl; do [[ -x $1/$program ]] || return 1; done
  [[ $("$1/kube-apiserver" --version) =~ v1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= oldest))
}

has_assets() { [[ ${KUBEBUILDER_ASSETS:-} ]] && has_control_plane "$KUBEBUILDER_ASSETS"; }

find_engine() {
  local engine
  command -v kind >/dev/null || return 1
  for engine in docker podman nerdctl; do
    if command -v "$engine" >/dev/null && timeout 10 "$engine" info >/dev/null 2>&1; then echo "$engine" && return; fi
  done
  return 1
}

# Prints the newest node image that is present. Prints nothing for an image that kind pulled, which has no tag, because kind
# finds it.
node_image() { # ENGINE
  "$1" image ls --format '{{.Repository}}:{{.Tag}}' | sort -V | awk -F : -v oldest="$oldest" '
    {sub("^docker.io/", "")}
    $1 == "kindest/node" && $2 == "<none>" {present = 1}
    $1 == "kindest/node" && split($2, version, ".") > 1 && version[2] >= oldest {newest = $0}
    $1 == "sync-operator-test/node" {own = $0}
    END {
      if (newest own) print newest ? newest : own
      exit !(present || newest || own)
    }'
}

# candidates ACTION: calls ACTION NAME REASON for each candidate, the fastest first, until one succeeds.
candidates() {
  local engine image
  if [[ -e $state/kubernetes ]]; then
    read -r image <"$state/kubernetes"
    [[ $CLUSTER == local || $CLUSTER == "$image" ]] || fail "the demo already runs on $image; stop it with make demo-down"
    "$1" "$image" "the demo already uses it"
    return
  fi
  case $CLUSTER in
    build | envtest | kind) "$1" "$CLUSTER" "selected by CLUSTER"; return ;;
    local) ;;
    *) fail "CLUSTER must be local, build, envtest, kind or existing, not $CLUSTER" ;;
  esac
  if is_built && "$1" build "the control plane is already built"; then return; fi
  if has_assets && "$1" envtest "KUBEBUILDER_ASSETS has a control plane"; then return; fi
  if has_control_plane "$envtest" && "$1" envtest "its archive is already downloaded"; then return; fi
  if engine=$(find_engine) && image=$(node_image "$engine") &&
    "$1" kind "kind and $engine work, and a node image is present"; then return; fi
  if answers "$envtest_url" && "$1" envtest "its archive can be downloaded"; then return; fi
  if [[ $engine ]] && ! node_image "$engine" >/dev/null && reaches_hub &&
    "$1" kind "kind and $engine work, and a node image can be downloaded"; then return; fi
  "$1" build "no faster way works on this machine"
}

print() { echo "$1: $2"; }

# --- start of each; an error is returned, so that the next candidate is tried

up_build() {
  # Low priority (NICE) while the demo runs something else.
  nice -n "${NICE:-0}" "$here/install.sh" kube && servers up kube
}

need_envtest() {
  local tmp=$envtest.tmp
  ! has_control_plane "$envtest" || return 0
  mkdir -p "$cache"
  rm -rf "$tmp"
  mkdir "$tmp"
  slowly "download envtest $envtest_version" 0 curl -fsSL --connect-timeout 3 --max-time 600 --speed-limit 100000 \
    --speed-time 15 -o "$tmp/archive" "$envtest_url"
  sha512sum --quiet -c <<<"$envtest_sha512  $tmp/archive" || fail "the checksum of envtest does not match"
  tar -xzf "$tmp/archive" -C "$tmp" || fail "could not unpack $tmp/archive"
  rm -rf "$envtest"
  mv "$tmp/controller-tools/envtest" "$envtest"
  rm -rf "$tmp"
}

up_envtest() {
  local folder=$envtest
  if [[ -e $state/kubernetes ]]; then
    servers up kube # the state has the folder
    return
  fi
  if has_assets; then
    folder=$KUBEBUILDER_ASSETS
  else
    [[ ! ${KUBEBUILDER_ASSETS:-} ]] || say "KUBEBUILDER_ASSETS has no control plane of Kubernetes 1.$oldest or later"
    (need_envtest) || return
  fi
  CONTROL_PLANE=$folder servers up kube
}

up_kind() {
  local engine image create=(kind create cluster --name "$kind_cluster" --kubeconfig "$state/kubeconfig")
  engine=$(find_engine) || { say "kind, or a container engine for it, is not installed"; return 1; }
  export KIND_EXPERIMENTAL_PROVIDER=$engine
  "$here/install.sh" kubectl || return
  if kubectl_answers; then return; fi
  if image=$(node_image "$engine") && [[ $image ]]; then create+=(--image "$image"); fi
  echo "$engine" >"$state/engine"
  kind delete cluster --name "$kind_cluster" --kubeconfig "$state/kubeconfig" >/dev/null 2>&1
  (slowly "create the kind cluster $kind_cluster in $engine, with ${image:-the default node image}" 0 \
    timeout 600 "${create[@]}") && return
  down
  return 1
}

kubectl_answers() {
  [[ -e $state/kubeconfig ]] &&
    "$kubectl/kubectl" --kubeconfig "$state/kubeconfig" --request-timeout=5s get --raw /readyz >/dev/null 2>&1
}

# --- commands

try() {
  say "$1: $2"
  if "up_$1"; then
    echo "$1" >"$state/kubernetes"
  else
    say "$1 does not work on this machine"
    return 1
  fi
}

up() {
  mkdir -p "$state"
  candidates try
}

print_env() {
  servers env
  [[ $(<"$state/kubernetes") != kind ]] ||
    printf 'export %s\n' "KUBECONFIG=$(printf %q "$state/kubeconfig")" "PATH=$(printf %q "$kubectl"):\$PATH"
}

down() {
  [[ -e $state/engine ]] || return 0
  KIND_EXPERIMENTAL_PROVIDER=$(<"$state/engine") kind delete cluster --name "$kind_cluster" \
    --kubeconfig "$state/kubeconfig"
  rm -f "$state"/{engine,kubeconfig,kubernetes}
}

case ${1:-} in
  choose) candidates print ;;
  up | down) "$1" ;;
  env) print_env ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
