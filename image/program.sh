#!/usr/bin/env bash
# program.sh FOLDER: writes the files of the image of the end-to-end tests to FOLDER: the program of `cargo build` and its
# shared libraries, and the other files of a release. All other tests run the same program, so this script compiles nothing
# more.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"

out=$1
program=${CARGO_TARGET_DIR:-target}/debug/sync-operator

need_certificates
cargo build --quiet --locked --bin sync-operator
mkdir -p "$out/etc/ssl/certs"
strip -o "$out/sync-operator" "$program"
install -m 0644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
mapfile -t libraries < <(ldd "$program" | grep -oE '/[^ ]+')
((${#libraries[@]})) || fail "no libraries of $program found"
for library in "${libraries[@]}"; do install -D -m 0755 "$library" "$out$library"; done
write_licences "$out"
