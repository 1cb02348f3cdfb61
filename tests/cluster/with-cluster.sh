#!/usr/bin/env bash
# Runs a command against servers of its own, with the CRDs installed, and stops them afterwards:
# with-cluster.sh COMMAND [ARGS...]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
export AXE=$axe BULLMQ_READERS=$readers AIOSMTPD=$aiosmtpd NGINX=$nginx/nginx
name="test-$$"
cluster() { "$here/cluster.sh" --name "$name" "$@"; }

# In the background, so that a signal ends it and the servers at once.
command=
trap '[[ -z $command ]] || kill "$command" 2>/dev/null || true; cluster down' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
"$here/install.sh" faketime schemathesis prometheus chromium bullmq aiosmtpd nginx
cluster up
eval "$(cluster env)"
kubectl apply -f "$here/../../crds" >/dev/null
kubectl wait --for=condition=Established crd/syncschedules.sync.codex.dev crd/syncjobs.sync.codex.dev \
  crd/syncalerts.sync.codex.dev >/dev/null
# The garbage collector looks for new kinds every 30 s, and once when it starts.
cluster stop controller-manager >/dev/null
cluster start controller-manager >/dev/null
"$@" &
command=$!
wait "$command"
