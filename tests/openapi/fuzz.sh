#!/usr/bin/env bash
# Calls a sidecar with everything that its OpenAPI document allows, and much that it does not, and checks the answers:
# fuzz.sh URL TOKEN. EXAMPLES=n for each call; SEED=n to repeat what was found.
# /events is left out: it has no end.
set -euo pipefail
url=${1:?the address of the sidecar} token=${2:?a token that may do everything}
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/../cluster/paths.sh"
[[ -d $schemathesis ]] || { echo "fuzz.sh: run tests/cluster/install.sh schemathesis first" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PYTHONPATH=$schemathesis python3 -m schemathesis.cli run "$url/openapi.json" --header "Authorization: Bearer $token" \
  --checks all --max-examples "${EXAMPLES:-25}" --exclude-path /events --seed "${SEED:-1}" --request-timeout 30 --no-color
