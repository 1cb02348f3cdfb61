#!/usr/bin/env bash
# sbom.sh: writes the software bill of materials, in the CycloneDX format, to sync-operator.cdx.json.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"

need_cargo_tool cargo-cyclonedx 0.5.9
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps \
  --target "$target" --override-filename sync-operator.cdx
echo "sync-operator.cdx.json"
