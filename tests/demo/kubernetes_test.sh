#!/usr/bin/env bash
# Tests which Kubernetes kubernetes.sh selects, on simulated machines with different programs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

program() { # PATH [LINE]: creates a program that runs LINE (default: fails)
  mkdir -p "$(dirname "$1")"
  printf '#!/bin/sh\n%s\n' "${2:-exit 1}" >"$1"
  chmod +x "$1"
}

# A machine without programs and without a network.
machine() {
  local name
  rm -rf "${folder:?}"/*
  for name in kind docker podman nerdctl curl; do program "$folder/bin/$name"; done
}

control_plane() { # FOLDER VERSION
  local name
  for name in etcd kubectl kube-controller-manager; do program "$1/$name"; done
  program "$1/kube-apiserver" "echo Kubernetes $2"
}

engine() { # NAME IMAGE...
  local images="${*:2}"
  program "$folder/bin/$1" "[ \"\$1\" = info ] || printf '%s\\n' $images"
}

reaches() { program "$folder/bin/curl" "case \"\$*\" in *$1*) exit 0 ;; *) exit 6 ;; esac"; } # HOST

choose() { # EXPECTED [NAME=VALUE...]
  local chosen
  chosen=$(env -u KUBEBUILDER_ASSETS -u CLUSTER PATH="$folder/bin:$PATH" SYNC_OPERATOR_CACHE="$folder/cache" \
    SYNC_OPERATOR_STATE="$folder/state" "${@:2}" "$here/kubernetes.sh" choose 2>&1) || true
  [[ $chosen == "$1"* ]] || { echo "kubernetes_test.sh: line ${BASH_LINENO[0]}: expected \"$1\", got \"$chosen\"" >&2; failed=1; }
}

machine
choose "build: no faster way"
choose "build: no faster way" KUBECONFIG=/a/cluster/in/production
choose "kind: selected by CLUSTER" CLUSTER=kind
choose "kubernetes.sh: CLUSTER must be" CLUSTER=other

machine
control_plane "$folder/assets" v1.33.0
choose "envtest: KUBEBUILDER_ASSETS" KUBEBUILDER_ASSETS="$folder/assets"
choose "build: selected by CLUSTER" KUBEBUILDER_ASSETS="$folder/assets" CLUSTER=build
control_plane "$folder/assets" v1.32.9
choose "build: no faster way" KUBEBUILDER_ASSETS="$folder/assets"
rm "$folder/assets/etcd"
choose "build: no faster way" KUBEBUILDER_ASSETS="$folder/assets"

machine
program "$folder/bin/kind" "exit 0"
choose "build: no faster way"
engine podman kindest/node:v1.34.0
choose "kind: kind and podman work, and a node image is present"
engine podman docker.io/kindest/node:v1.34.0
choose "kind: kind and podman work, and a node image is present"
engine podman kindest/node:v1.32.0 redis:7
choose "build: no faster way"
reaches registry-1.docker.io
choose "kind: kind and podman work, and a node image can be downloaded"
reaches github.com
choose "envtest: its archive can be downloaded"
engine docker "'kindest/node:<none>'"
choose "kind: kind and docker work, and a node image is present"
engine docker sync-operator-test/node:0123456789abcdef kindest/node:v1.36.1 kindest/node:v1.9.0
choose "kind: kind and docker work, and a node image is present"
rm "$folder/bin/kind"
[[ $(command -v kind) ]] || choose "envtest: its archive can be downloaded"

machine
# shellcheck source-path=SCRIPTDIR source=../cluster/paths.sh
control_plane "$(SYNC_OPERATOR_CACHE=$folder/cache && source "$here/../cluster/paths.sh" && echo "$control_plane")" v1.37.2
choose "build: the control plane is already built"
choose "build: the control plane is already built" KUBEBUILDER_ASSETS="$folder/assets"

machine
mkdir -p "$folder/state/demo-operator"
echo envtest >"$folder/state/demo-operator/kubernetes"
choose "envtest: the demo already uses it"
choose "envtest: the demo already uses it" CLUSTER=envtest
choose "kubernetes.sh: the demo already runs on envtest" CLUSTER=kind

exit $failed
