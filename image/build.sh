#!/usr/bin/env bash
# build.sh [test]: builds the image sync-operator:VERSION, with Docker if an engine is running, otherwise with buildah. Prints
# the path of an archive of the image (docker load, kind load image-archive). `test` builds the image of the end-to-end tests:
# it has the same name and Dockerfile, but contains the program of cargo build (program.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"
exec 3>&1 >&2 # standard output is for the path only

[[ $# == 0 || $* == test ]] || fail "build.sh [test]"
kind=${1:-release}
limit=$((30 << 20))
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=sync-operator:$version
folder=$cache/image
stage=$folder/stage-$kind
archive=$folder/sync-operator-$version.tar
[[ $kind == release ]] || archive=$folder/sync-operator-$version-test.tar

# Fills the folder with the files that the build stage of the Dockerfile writes to /out, and with the rest of that Dockerfile.
fill_stage() { # SCRIPT
  rm -rf "$stage"
  "image/$1.sh" "$stage/out"
  sed -e '1,/^FROM scratch/{/^FROM scratch/!d}' -e 's/--from=build //' Dockerfile >"$stage/Dockerfile"
}

with_docker() {
  if [[ $kind == release ]]; then
    docker build --quiet --tag "$name" . >/dev/null
    docker save --output "$archive" "$name"
    return
  fi
  local before
  before=$(docker image inspect --format '{{.Id}}' "$name" 2>/dev/null || true)
  fill_stage program
  docker build --quiet --tag "$name" "$stage" >/dev/null
  docker save --output "$archive" "$name"
  # Outside of the tests, the name refers to a release.
  if [[ $before ]]; then docker tag "$before" "$name"; else docker rmi "$name" >/dev/null; fi
}

with_buildah() {
  local buildah=(buildah --storage-driver vfs --root "$folder/storage" --runroot "$folder/run")
  command -v buildah >/dev/null || install_packages buildah
  if [[ $kind == release ]]; then fill_stage binary; else fill_stage program; fi
  "${buildah[@]}" build --quiet --isolation chroot --format docker --tag "$name" "$stage" >/dev/null
  rm -f "$archive"
  "${buildah[@]}" push --quiet "localhost/$name" "docker-archive:$archive:docker.io/library/$name"
  "${buildah[@]}" rmi --all --force >/dev/null
}

# Prints the paths of the files in all layers of the image.
files_of_image() {
  local layer
  tar -tf "$archive" | grep -E '^(blobs/sha256/)?[0-9a-f]{64}(\.tar|/layer\.tar)?$' | while read -r layer; do
    # Other blobs are JSON.
    tar -xOf "$archive" "$layer" | tar -t 2>/dev/null || true
  done
}

mkdir -p "$folder"
exec 9<"$folder"
flock 9
if docker info >/dev/null 2>&1; then with_docker; else with_buildah; fi
files=$(files_of_image)
for file in sync-operator etc/ssl/certs/ca-certificates.crt licenses/LICENSE licenses/THIRD-PARTY-NOTICES; do
  grep -qxF -- "$file" <<<"$files" || fail "the image has no $file"
done
size=$(stat -c %s "$archive")
[[ $kind != release ]] || ((size < limit)) || fail "the image has $size bytes, more than $limit"
say "$name ($kind): $((size * 10 / 1048576 / 10)).$((size * 10 / 1048576 % 10)) MiB"
echo "$archive" >&3
