#!/usr/bin/env bash
# with-cluster.sh COMMAND [ARGS...]: starts test servers with the CRDs, runs COMMAND, and stops the servers.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
export AXE=$axe BULLMQ_READERS=$readers AIOSMTPD=$aiosmtpd NGINX=$nginx/nginx
name="test-$$"
cluster() { "$here/cluster.sh" --name "$name" "$@"; }

# The command runs in the background, so that a signal stops it and the servers immediately.
command=
trap '[[ -z $command ]] || kill "$command" 2>/dev/null || true; cluster down' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
"$here/install.sh" faketime schemathesis prometheus chromium bullmq aiosmtpd nginx
cluster up
eval "$(cluster env)"
kubectl apply -f "$here/../../crds" >/dev/null
# With condition=Established, kubectl fails while a kind has no status.
kubectl wait --for='jsonpath={.status.conditions[?(@.type=="Established")].status}=True' \
  crd/syncschedules.sync.codex.dev crd/syncjobs.sync.codex.dev crd/syncalerts.sync.codex.dev >/dev/null
# The garbage collector discovers new kinds at its start, and then every 30 s.
cluster stop controller-manager >/dev/null
cluster start controller-manager >/dev/null
"$@" &
command=$!
wait "$command"
