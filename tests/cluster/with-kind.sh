#!/usr/bin/env bash
# Runs a command against a cluster of its own that runs pods, and deletes it afterwards: with-kind.sh COMMAND [ARGS...]
# With CLUSTER=existing, against the one that KUBECONFIG or kubectl's configuration names, which stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
name="test-$$"
kind() { "$here/kind.sh" --name "$name" "$@"; }

if [[ ${CLUSTER:-} == existing ]]; then
  kubectl version --request-timeout=10s >/dev/null ||
    { echo "with-kind.sh: kubectl reaches no cluster: set KUBECONFIG, or choose one with kubectl config use-context" >&2; exit 1; }
  exec "$@"
fi

# All in the background, as in with-cluster.sh.
command=
trap '[[ -z $command ]] || kill "$command" 2>/dev/null || true; kind down' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
"$here/kind.sh" --name "$name" up &
command=$!
wait "$command"
command=
eval "$(kind env)"
export SYNC_OPERATOR_KIND=$name
"$@" &
command=$!
wait "$command"
