#!/usr/bin/env bash
# upgrade.sh REVISION: installs the chart and the image of an earlier revision on a kind cluster, upgrades to this revision
# during runs, and downgrades again. SYNC_OPERATOR_IMAGE=$(make image) uses the image of a release for this revision.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
revision=${1:-$(git describe --tags --abbrev=0 2>/dev/null || true)}
[[ $revision ]] || { echo "upgrade.sh: no tag found: name a commit, such as make prove-upgrade FROM=5eec6bf" >&2; exit 1; }

folder=$cache/earlier/source
rm -rf "$folder"
mkdir -p "$folder"
git archive "$revision" | tar --extract --directory "$folder"
# Both images are on the nodes, so they need different names.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$folder/Cargo.toml" | head -n 1)
sed -i "0,/^version = \"$version\"/s//version = \"$version-earlier\"/" "$folder/Cargo.toml"
sed -i "/^name = \"sync-operator\"/{n;s/\"$version\"/\"$version-earlier\"/}" "$folder/Cargo.lock"
echo "upgrade.sh: building the image of $revision" >&2
EARLIER_IMAGE=$(cd "$folder" && CARGO_TARGET_DIR=$cache/earlier/target image/build.sh test)
export EARLIER_IMAGE EARLIER_CHART=$folder/charts/sync-operator EARLIER_TAG=$version-earlier
exec tests/e2e/run.sh --ignored upgrade::
