#!/usr/bin/env bash
# run.sh own|peers|scale: starts servers and runs the benchmarks. Prints progress to standard error, and tables to standard
# output. ROUNDS=3 SIZES="100000 1000000" (users; peers: 100000)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
which=${1:?own, peers or scale}
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
name="bench-$$"
cluster() { "$here/../tests/cluster/cluster.sh" --name "$name" "$@"; }
speed() { cargo bench --quiet --bench speed -- "$@"; }

BENCH_RESULTS=$(mktemp)
export BENCH_RESULTS MONGODB_DATABASE=bench
sets=(queue users) sizes=${SIZES:-100000 1000000}
cd "$here/.."
if [[ $which == peers ]]; then
  sets=(peers-queue peers-users) sizes=${SIZES:-100000}
  command -v npm >/dev/null || { echo "benches/run.sh: the peers need Node.js 20 or later with npm" >&2; exit 1; }
  BENCH_PEERS=$cache/peers-$(cat "$here"/peers/* | sha256sum | cut -c -16)
  export BENCH_PEERS
  if [[ ! -e $BENCH_PEERS/ready ]]; then
    mkdir -p "$BENCH_PEERS"
    cp "$here"/peers/* "$BENCH_PEERS"
    (cd "$BENCH_PEERS" && npm install --no-audit --no-fund --no-package-lock --loglevel=error)
    touch "$BENCH_PEERS/ready"
  fi
fi
if [[ $which == scale ]]; then
  cargo bench --quiet --bench scale --no-run
  trap 'cluster down; rm -f "$BENCH_RESULTS"' EXIT
  cluster up
  eval "$(cluster env)"
  kubectl apply -f crds >&2
  kubectl wait --for condition=established --timeout 60s crd/syncjobs.sync.codex.dev crd/syncschedules.sync.codex.dev crd/syncalerts.sync.codex.dev >&2
  cargo bench --quiet --bench scale
  exit
fi
cargo build --quiet --release --bin sync-operator --example seed
cargo bench --quiet --bench speed --no-run

trap 'cluster down; rm -f "$BENCH_RESULTS"' EXIT
cluster up redis mongodb
eval "$(cluster env)"
speed measure "${sets[0]}"
for size in $sizes; do
  cargo run --quiet --release --example seed -- "$size" 0 >&2
  speed measure "${sets[1]}"
done
echo
echo "$(date +%F), $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(uname -sr)"
speed table
