#!/usr/bin/env bash
# sbom.sh: writes what the program consists of, as CycloneDX, to sync-operator.cdx.json.
set -euo pipefail

version=0.5.9
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
tools=$cache/cargo-cyclonedx-$version

cd "$(dirname "$0")/.."
[[ -x $tools/bin/cargo-cyclonedx ]] || cargo install --quiet --locked --root "$tools" "cargo-cyclonedx@$version"
PATH=$tools/bin:$PATH
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps \
  --target "$(uname -m)-unknown-linux-musl" --override-filename sync-operator.cdx
echo "sync-operator.cdx.json"
