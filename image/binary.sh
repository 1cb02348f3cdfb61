#!/usr/bin/env bash
# binary.sh FOLDER: puts into FOLDER what the image consists of: the program as one static file, with the list of its
# dependencies inside (cargo auditable), and the certificates of well-known authorities.
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
# jemalloc takes the size of a page from the machine that builds; on arm64 it may be up to 64 KiB where the program runs.
[[ $target != aarch64-* ]] || export JEMALLOC_SYS_WITH_LG_PAGE=16
need_cargo_tool cargo-auditable 0.7.7
slowly "build the program for $target (15 minutes on 2 cores, when nothing is built yet)" 0 \
  cargo auditable build --quiet --profile image --locked --target "$target"
mkdir -p "$out/etc/ssl/certs"
install -m 0755 "${CARGO_TARGET_DIR:-target}/$target/image/sync-operator" "$out/sync-operator"
install -m 0644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
