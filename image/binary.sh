#!/usr/bin/env bash
# binary.sh FOLDER: puts into FOLDER what the image consists of: the program as one static file, with the list of its
# dependencies inside (cargo auditable), and the certificates of well-known authorities.
set -euo pipefail

auditable=0.7.7
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
target=$(uname -m)-unknown-linux-musl
out=$1

say() { printf 'binary.sh: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

need_packages() {
  local missing=()
  command -v musl-gcc >/dev/null || missing+=(musl-tools)
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || fail "not root: have these Debian packages installed first: ${missing[*]}"
  say "apt-get install ${missing[*]} ..."
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >/dev/null
}

need_target() {
  rustup target list --installed | grep -qx "$target" || rustup target add "$target"
}

need_auditable() {
  local tools=$cache/cargo-auditable-$auditable
  PATH=$tools/bin:$PATH
  [[ -x $tools/bin/cargo-auditable ]] || cargo install --quiet --locked --root "$tools" "cargo-auditable@$auditable"
}

cd "$(dirname "$0")/.."
need_packages
need_target
need_auditable
say "build the program for $target (15 minutes on 2 cores, when nothing is built yet) ..."
cargo auditable build --quiet --profile image --locked --target "$target"
mkdir -p "$out/etc/ssl/certs"
install -m 0755 "${CARGO_TARGET_DIR:-target}/$target/image/sync-operator" "$out/sync-operator"
install -m 0644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
