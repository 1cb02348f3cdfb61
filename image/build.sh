#!/usr/bin/env bash
# build.sh: makes the image sync-operator:VERSION, with Docker where an engine runs, with buildah otherwise, and prints
# the path of an archive of it (docker load, kind load image-archive).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/tools.sh"
exec 3>&1 >&2 # the path alone is for whoever called

limit=$((30 << 20))
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=sync-operator:$version
folder=$cache/image
archive=$folder/sync-operator-$version.tar

with_docker() {
  docker build --quiet --tag "$name" . >/dev/null
  docker save --output "$archive" "$name"
}

with_buildah() {
  local stage=$folder/stage
  command -v buildah >/dev/null || install_packages buildah
  rm -rf "$stage"
  image/binary.sh "$stage/out"
  local buildah=(buildah --storage-driver vfs --root "$folder/storage" --runroot "$folder/run")
  "${buildah[@]}" build --quiet --isolation chroot --format docker --build-context "build=$stage" --tag "$name" . >/dev/null
  rm -f "$archive"
  "${buildah[@]}" push --quiet "localhost/$name" "docker-archive:$archive:docker.io/library/$name"
  "${buildah[@]}" rmi --all --force >/dev/null
}

mkdir -p "$folder"
exec 9<"$folder"
flock 9
if docker info >/dev/null 2>&1; then with_docker; else with_buildah; fi
size=$(stat -c %s "$archive")
((size < limit)) || fail "the image has $size bytes, more than $limit"
say "$name: $((size * 10 / 1048576 / 10)).$((size * 10 / 1048576 % 10)) MiB"
echo "$archive" >&3
