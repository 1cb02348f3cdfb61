#!/usr/bin/env bash
# with-kind.sh COMMAND [ARGS...]: creates a kind cluster, runs COMMAND, and deletes the cluster. With CLUSTER=existing, the
# script uses the cluster of KUBECONFIG or of kubectl's configuration, and does not delete it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
name="test-$$"
kind() { "$here/kind.sh" --name "$name" "$@"; }

if [[ ${CLUSTER:-} == existing ]]; then
  kubectl version --request-timeout=10s >/dev/null ||
    { echo "with-kind.sh: kubectl reaches no cluster: set KUBECONFIG, or select a context with kubectl config use-context" >&2; exit 1; }
  exec "$@"
fi

# The commands run in the background, as in with-cluster.sh.
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
