#!/usr/bin/env bash
# fuzz.sh URL TOKEN: sends valid and invalid requests to a sidecar, generated from its OpenAPI document, and checks the
# responses. EXAMPLES=n is the number of requests per operation. SEED=n repeats a failure. The script skips /events, which is an
# endless stream.
set -euo pipefail
url=${1:?the URL of the sidecar} token=${2:?a token with all rights}
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/../cluster/paths.sh"
[[ -d $schemathesis ]] || { echo "fuzz.sh: run tests/cluster/install.sh schemathesis first" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
PYTHONPATH=$schemathesis python3 -m schemathesis.cli run "$url/openapi.json" --header "Authorization: Bearer $token" \
  --checks all --max-examples "${EXAMPLES:-25}" --exclude-path /events --seed "${SEED:-1}" --request-timeout 30 --no-color
