#!/usr/bin/env bash
# What `make test` does after `make check`. The checks of the chart and of the dependencies run beside the integration tests
# and the random faults, and print when they have ended. The end-to-end tests come last: they have a cluster of their own,
# and some integration tests have limits of a few seconds.
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

echo "Beside the integration tests: deny and test-chart. To look on: tail -f $log"
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
# They have ended, so there is nothing to end any more.
trap - EXIT
part test-e2e
