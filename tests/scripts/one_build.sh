#!/usr/bin/env bash
# Fails when `cargo build` compiles a dependency again that `cargo test` has compiled: then the two ask for different features
# of it, and Cargo.toml has to name those that are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo test --quiet --no-run --lib --bins
compiled=$(cargo build --quiet --message-format json |
  sed -n '/"fresh":false/s/.*"package_id":"\([^"]*\)".*/\1/p' | grep -v '^path+file:' || true)
[[ ! $compiled ]] || { printf 'compiled once more by cargo build, after cargo test:\n%s\n' "$compiled" >&2; exit 1; }
