#!/usr/bin/env bash
# generate.sh [--check]: writes the files that are generated from the chart and the CRDs: the chart's CRDs, values.schema.json,
# README.md and manifests/install.yaml. With --check, the script writes nothing, and fails if a file is stale.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

[[ $# == 0 || $* == --check ]] || { echo "generate.sh [--check]" >&2; exit 2; }
check=${1:-} stale=0

# generate FILE COMMAND...: writes the output of COMMAND to FILE.
generate() {
  local file=$1 new
  shift
  new=$(mktemp "$made/XXXXXX")
  "$@" >"$new"
  if [[ ! $check ]]; then
    cat "$new" >"$root/$file"
  elif ! diff -u "$root/$file" "$new"; then
    echo "$file is stale: run make generate" >&2
    stale=1
  fi
}

# `generate` calls these two functions by name.
# shellcheck disable=SC2317,SC2329
readme() { helm-docs --chart-search-root "$chart" --sort-values-order file --log-level warning --dry-run; }

# shellcheck disable=SC2317,SC2329
install_yaml() {
  echo "# Made by make generate from charts/sync-operator and manifests/install.values.yaml, which says how to install it."
  helm template sync-operator "$chart" --namespace sync-operator --skip-tests -f "$root/manifests/install.values.yaml"
}

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$chart_tests/install.sh" helm helm-docs python
mkdir -p "$chart/files/crds"
for kind in syncalerts syncjobs syncschedules; do
  generate "charts/sync-operator/files/crds/$kind.yaml" cat "$root/crds/$kind.yaml"
done
generate charts/sync-operator/values.schema.json with_python "$chart_tests/values_schema.py" "$chart/values.yaml"
generate charts/sync-operator/README.md readme
generate manifests/install.yaml install_yaml
exit "$stale"
