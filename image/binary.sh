#!/usr/bin/env bash
# binary.sh FOLDER: writes the files of the image to FOLDER: the static program with the list of its dependencies (cargo
# auditable), the CA certificates, and the licences.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"

out=$1

need_packages() {
  command -v musl-gcc >/dev/null || install_packages musl-tools
  need_certificates
}

need_target() {
  rustup target list --installed | grep -qx "$target" || rustup target add "$target"
}

need_packages
need_target
# jemalloc uses the page size of the build machine by default. On arm64, other machines have pages of up to 64 KiB.
[[ $target != aarch64-* ]] || export JEMALLOC_SYS_WITH_LG_PAGE=16
need_cargo_tool cargo-auditable 0.7.7
slowly "build the program for $target (15 minutes on 2 cores, without a cache)" 0 \
  cargo auditable build --quiet --profile image --locked --target "$target"
mkdir -p "$out/etc/ssl/certs"
install -m 0755 "${CARGO_TARGET_DIR:-target}/$target/image/sync-operator" "$out/sync-operator"
install -m 0644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
write_licences "$out"
