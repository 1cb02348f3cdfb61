# shellcheck shell=bash disable=SC2034
# Functions of the scripts in this folder. Sourcing it changes to the project's folder.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
target=$(uname -m)-unknown-linux-musl
mkdir -p "$cache"
# shellcheck source-path=SCRIPTDIR
source tests/cluster/installing.sh

need_cargo_tool() { # NAME VERSION
  local folder=$cache/$1-$2
  PATH=$folder/bin:$PATH
  [[ -x $folder/bin/$1 ]] || slowly "build $1 $2" 0 cargo install --locked --root "$folder" "$1@$2"
}

# Writes the licences of the program and of all other software in the image.
write_licences() { # FOLDER
  install -D -m 0644 LICENSE "$1/licenses/LICENSE"
  image/notices.sh "$1/licenses/THIRD-PARTY-NOTICES"
  chmod 0644 "$1/licenses/THIRD-PARTY-NOTICES"
}

need_certificates() { [[ -e /etc/ssl/certs/ca-certificates.crt ]] || install_packages ca-certificates; }
