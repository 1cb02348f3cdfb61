#!/usr/bin/env bash
# Lists the 20 slowest tests of the last run, and then the durations of the parts of `make test`, in seconds.
set -euo pipefail
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
cd "$cache/times" 2>/dev/null || { echo "times.sh: no test results: run make test first" >&2; exit 1; }

# From lines such as "test queue::a_test ... ok <1.234s>".
tests() {
  { grep -HsE '^test .* \.\.\. [a-zA-Z]+ <[0-9.]+s>$' unit integration e2e || true; } |
    sed -E 's/^([a-z0-9]+):test (.*) \.\.\. [a-zA-Z]+ <([0-9.]+)s>$/\3 \1 \2/' | sort -rn
}

echo "seconds  test"
tests | sed -n 1,20p | awk '{ printf "%7.1f  %-11s  %s\n", $1, $2, $3 }'
tests | awk '{ sum += $1 } END { printf "%7.1f  of %d tests\n", sum, NR }'
[[ ! -e parts ]] || { printf '\nseconds  part\n'; awk '{ printf "%7d  %s\n", $1, $2 }' parts; }
