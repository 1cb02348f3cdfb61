#!/usr/bin/env bash
# What `make test` does after `make check`. The tests of the chart mostly wait for pods, so they and what needs no server run
# beside the integration tests and the random faults. What they print comes when they have ended.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
log=$cache/beside.log
parts=$cache/times/parts
mkdir -p "$cache/times"
: >"$parts"

part() { # TARGET
  local began=$SECONDS
  make --no-print-directory "$1"
  echo "$((SECONDS - began)) $1" >>"$parts"
}

beside() {
  part deny
  part test-chart
  part test-e2e
}

tests() {
  part integration
  part faults
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

echo "Beside the integration tests: deny, test-chart and test-e2e. To look on: tail -f $log"
beside </dev/null >"$log" 2>&1 &
beside=$!
tests </dev/null &
tests=$!

# Whichever fails ends the other one.
finish() { # EXIT_CODE
  [[ $ended != "$beside" ]] || cat "$log"
  (($1 == 0)) || exit "$1"
}
code=0
wait -n -p ended "$beside" "$tests" || code=$?
finish "$code"
if [[ $ended == "$beside" ]]; then ended=$tests; else ended=$beside; fi
[[ $ended != "$beside" ]] || echo "Waiting for what runs beside: tail -f $log"
wait "$ended" || code=$?
finish "$code"
