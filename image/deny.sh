#!/usr/bin/env bash
# deny.sh: checks what the program depends on against deny.toml: licences, versions that are there twice, where it comes
# from; and known vulnerabilities, where the list of them on GitHub can be reached.
set -euo pipefail

version=0.20.2
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
tools=$cache/cargo-deny-$version
advisories=https://github.com/rustsec/advisory-db

cd "$(dirname "$0")/.."
[[ -x $tools/bin/cargo-deny ]] || cargo install --quiet --locked --root "$tools" "cargo-deny@$version"
PATH=$tools/bin:$PATH
checks=(bans licenses sources)
if timeout 20 git ls-remote --quiet "$advisories" HEAD >/dev/null 2>&1; then
  checks+=(advisories)
else
  echo "deny.sh: $advisories cannot be reached: known vulnerabilities are not looked for" >&2
fi
cargo deny --log-level warn check --hide-inclusion-graph "${checks[@]}"
