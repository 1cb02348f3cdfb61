#!/usr/bin/env bash
# timed.sh NAME ARGUMENT... [-- ARGUMENT...]: cargo test with these arguments, which also tells and keeps how long each
# test took: `make test-times` lists it.
set -euo pipefail
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
name=$1
shift
cargo=() tests=()
while (($#)) && [[ $1 != -- ]]; do cargo+=("$1"); shift; done
(($# == 0)) || tests=("${@:2}")

# The times are an unstable option of the tests' own program. It goes by this variable, which cargo and the compiler do not
# get to see: they would compile everything anew.
host=$(rustc -vV | sed -n 's/^host: //p')
host=${host//-/_}
export "CARGO_TARGET_${host^^}_RUNNER=env RUSTC_BOOTSTRAP=1"
mkdir -p "$cache/times"
cargo test "${cargo[@]}" -- -Zunstable-options --report-time "${tests[@]}" | tee "$cache/times/$name"
