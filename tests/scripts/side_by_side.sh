#!/usr/bin/env bash
# What `make test` does after `make check`, in three jobs side by side: the integration tests; the end-to-end tests, which
# wait for pods half of their time; and the random faults, the model, and the checks of the chart and of the dependencies. The first
# prints as it runs, the others when they have ended. A job that fails ends the others.
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

# Each in a process group of its own, to end all of it.
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

declare -A logs=()
beside() { # NAME TARGET...
  local log=$cache/$1.log
  shift
  part "$@" </dev/null >"$log" 2>&1 &
  logs[$!]=$log
  echo "Beside the integration tests: $*. To look on: tail -f $log"
}

beside e2e test-e2e
beside checks faults model deny test-chart
part integration </dev/null &
logs[$!]=/dev/null

while ((${#logs[@]})); do
  code=0
  wait -n -p ended "${!logs[@]}" || code=$?
  cat "${logs[$ended]}"
  unset "logs[$ended]"
  ((code == 0)) || exit "$code"
  ((${#logs[@]} == 0)) || echo "Waiting for what runs beside: tail -f ${logs[*]}"
done
# They have ended, so there is nothing to end any more.
trap - EXIT
