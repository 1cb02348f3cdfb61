#!/usr/bin/env bash
# Runs the part of `make test` that follows `make check`, in three concurrent jobs: the integration tests; the end-to-end
# tests, which wait for pods half of their time; and the random faults, the model, and the checks of the dependencies and the
# chart. The script prints the output of the first job at once, and of the others when they end. A job that fails stops the
# others.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
parts=$cache/times/parts
mkdir -p "$cache/times"
: >"$parts"

part() { # TARGET...
  local target began
  for target; do
    began=$SECONDS
    make --no-print-directory "$target"
    echo "$((SECONDS - began)) $target" >>"$parts"
  done
}

# Each job has its own process group, so that a signal reaches all its processes.
set -m
end() {
  trap - EXIT
  # shellcheck disable=SC2046
  kill -- $(jobs -p | sed 's/^/-/') 2>/dev/null || true
  wait
}
trap end EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# By process ID: the targets of each job, and its log. The first job has no log.
declare -A targets=() logs=()
in_background() { # NAME TARGET...
  local log=$cache/$1.log
  shift
  part "$@" </dev/null >"$log" 2>&1 &
  targets[$!]=$* logs[$!]=$log
  echo "Running in the background: $*. To follow: tail -f $log"
}

still_running() {
  local job
  for job in "${!targets[@]}"; do
    if [[ -v logs[$job] ]]; then
      echo "Still running: ${targets[$job]}. To follow: tail -f ${logs[$job]}"
    else
      echo "Still running: ${targets[$job]}, with its output here"
    fi
  done
}

in_background e2e test-e2e
in_background checks faults model deny test-chart
part integration </dev/null &
targets[$!]=integration

while ((${#targets[@]})); do
  code=0
  wait -n -p ended "${!targets[@]}" || code=$?
  [[ ! -v logs[$ended] ]] || cat "${logs[$ended]}"
  ((code == 0)) || { echo "Failed: ${targets[$ended]}" >&2; exit "$code"; }
  unset "targets[$ended]" "logs[$ended]"
  still_running
done
# All jobs have ended, so there is nothing to stop.
trap - EXIT
