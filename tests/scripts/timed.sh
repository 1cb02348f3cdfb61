#!/usr/bin/env bash
# timed.sh NAME ARGUMENT... [-- ARGUMENT...]: runs cargo test with these arguments, and prints and stores the duration of each
# test. `make test-times` lists the durations.
set -euo pipefail
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
name=$1
shift
cargo=() tests=()
while (($#)) && [[ $1 != -- ]]; do cargo+=("$1"); shift; done
(($# == 0)) || tests=("${@:2}")

# --report-time is an unstable option of the test program, which RUSTC_BOOTSTRAP allows. The runner sets the variable for the
# test program only, because cargo would recompile everything with it.
host=$(rustc -vV | sed -n 's/^host: //p')
host=${host//-/_}
export "CARGO_TARGET_${host^^}_RUNNER=env RUSTC_BOOTSTRAP=1"
mkdir -p "$cache/times"
cargo test "${cargo[@]}" -- -Zunstable-options --report-time "${tests[@]}" | tee "$cache/times/$name"
