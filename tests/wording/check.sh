#!/usr/bin/env bash
# Checks the wording of the project with check.py, and its Markdown and links with rumdl.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
# shellcheck source-path=SCRIPTDIR source=../cluster/installing.sh
source tests/cluster/installing.sh

mkdir -p "$cache"
command -v python3 >/dev/null || install_packages python3
need_program_from_wheel rumdl 0.3.0 \
  'rumdl==0.3.0 --hash=sha256:7ab558f93d26e101c67c636b8f2dcf16c10befaeb319ac9ba8e8c8cdaa292f6c'
failed=0
python3 tests/wording/check.py || failed=1
mapfile -t pages < <(python3 tests/wording/check.py --list | grep '\.md$')
rumdl check --no-cache --quiet "${pages[@]}" || failed=1
exit $failed
