#!/usr/bin/env bash
# notices.sh FILE: writes the third-party notices of the image to FILE: the licences of all crates in the program, of the Rust
# standard library, musl, htmx and the CA certificates. Fails if the licence of a crate is not known.
set -euo pipefail
file=$(realpath -m -- "${1:?the file to write}")
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"

registry=${CARGO_HOME:-$HOME/.cargo}/registry/src

# Prints NAME|VERSION|LICENCE of each crate.
crates() {
  cargo tree --quiet --locked --target "$target" --edges normal --prefix none --format '{p}|{l}' |
    sed -E 's/ \(\*\)$//; s/ \([^|]*\)\|/|/; s/ v/|/' | LC_ALL=C sort -u
}

# The text for a crate without a licence file: the licence that its manifest names.
standard_text() { # LICENCE
  case $1 in
    *Apache-2.0*) echo LICENSE ;;
    MIT | BSD-3-Clause) echo "image/licences/$1.txt" ;;
    *) return 1 ;;
  esac
}

authors() { # FOLDER
  awk '/^authors = / { inside = 1 } inside { text = text $0 } inside && /\]/ { exit } END { print text }' "$1/Cargo.toml" |
    sed -E 's/^authors = \[ *//; s/,? *\]$//; s/ *<[^>]*>//g; s/"//g; s/ +/ /g'
}

# Prints HEADING, a tab and FILE for each licence file of each crate.
crate_files() {
  local name version licence folder files text holder
  while IFS='|' read -r name version licence; do
    folder=$(echo "$registry"/*/"$name-$version")
    [[ -d $folder ]] || fail "$name $version: not found in $registry"
    mapfile -t files < <(find "$folder" \( -name benches -o -name tests -o -name examples \) -prune -o -type f \
      -iregex '.*/\(licen[cs]e\|unlicense\|copying\|copyright\|notice\)\([-._][^/]*\)?' ! -name '*.rs' -print | LC_ALL=C sort)
    if ((${#files[@]})); then
      for text in "${files[@]}"; do printf '%s\t%s\n' "$name $version ($licence)" "$text"; done
    else
      text=$(standard_text "$licence") || fail "$name $version: no licence file, and no text for $licence in image/licences"
      holder=$(authors "$folder")
      printf '%s\t%s\n' "$name $version ($licence), by ${holder:-its authors}" "$text"
    fi
  done
}

# The copyright page of the standard library, as text.
standard_library() {
  local page
  page=$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html
  [[ -e $page ]] || fail "the Rust toolchain has no $page"
  sed -e '/<style/,/<\/style>/d' -e 's/<[^>]*>//g' -e 's/&#60;/</g; s/&#62;/>/g; s/&#34;/"/g; s/&#39;/'\''/g; s/&#38;/\&/g' \
    -e 's/^ *//' "$page" | cat -s
}

need_certificates
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
crates | grep -v '^sync-operator|' >"$work/crates"
(($(wc -l <"$work/crates") > 100)) || fail "cargo tree lists too few crates"
crate_files <"$work/crates" >"$work/files"
standard_library >"$work/library"
{
  printf '%s\t%s\n' "Rust standard library $(rustc --version | cut -d ' ' -f 2)" "$work/library"
  printf '%s\t%s\n' "musl (MIT)" image/licences/musl.txt
  printf '%s\t%s\n' "htmx (0BSD)" src/http/dashboard/assets/htmx.LICENSE
  printf '%s\t%s\n' "CA certificates of Mozilla, as packaged by Debian (MPL-2.0)" /usr/share/doc/ca-certificates/copyright
} >>"$work/files"
mkdir -p "$(dirname "$file")"
{
  echo "sync-operator contains the software of third parties that this file lists, with the licences of each."
  echo
  awk -f image/notices.awk "$work/files"
} >"$file"
