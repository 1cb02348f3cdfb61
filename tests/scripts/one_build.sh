#!/usr/bin/env bash
# Fails if `cargo build` recompiles a dependency of `cargo test`. The two commands then enable different features of it, and
# Cargo.toml must name the missing ones.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo test --quiet --no-run --lib --bins
compiled=$(cargo build --quiet --message-format json |
  sed -n '/"fresh":false/s/.*"package_id":"\([^"]*\)".*/\1/p' | grep -v '^path+file:' || true)
[[ ! $compiled ]] || { printf 'one_build.sh: cargo build recompiled these dependencies of cargo test:\n%s\n' "$compiled" >&2; exit 1; }
