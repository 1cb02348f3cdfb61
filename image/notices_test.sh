#!/usr/bin/env bash
# Checks that the third-party notices name each crate of `cargo tree` and the other software in the image.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
image/notices.sh "$folder/notices"
mapfile -t crates < <(cargo tree --quiet --locked --target "$target" --edges normal --prefix none |
  awk '$1 != "sync-operator" { sub(/^v/, "", $2); print $1, $2 }' | sort -u)
((${#crates[@]} > 100)) || fail "cargo tree lists too few crates"
for software in "${crates[@]}" "Rust standard library" musl htmx "CA certificates"; do
  grep -qF -- "$software " "$folder/notices" || fail "the third-party notices do not name $software"
done
grep -q "Apache License" "$folder/notices" || fail "the third-party notices contain no licence text"
say "third-party notices of ${#crates[@]} crates: passed"
