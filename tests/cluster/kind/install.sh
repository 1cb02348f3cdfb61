#!/usr/bin/env bash
# Installs what kind.sh needs: install.sh PART..., each one of
#   engine  a Docker engine
#   kind    kind
#   node    the node's image, for machines that do not reach Docker Hub
#   images  images of Redis and MongoDB
# and before them kubectl and what these are made from, by ../install.sh. Needs root where a Debian package is missing, and for the node's image.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../paths.sh
source "$(dirname "${BASH_SOURCE[0]}")/../paths.sh"
# shellcheck source-path=SCRIPTDIR source=../installing.sh
source "$(dirname "${BASH_SOURCE[0]}")/../installing.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/artifacts.sh"

has_program() { command -v "$1" >/dev/null; } # command -v succeeds with the first of several that it finds

need_program() { # PROGRAM PACKAGE...
  has_program "$1" || install_packages "${@:2}"
}

# go_install FILE WHAT PACKAGE...: FILE is the program that the first PACKAGE makes.
go_install() {
  [[ ! -x $1 ]] || return 0
  need_go
  local tmp=$1.tmp
  rm -rf "$tmp"
  slowly "build $2" 0 env GOFLAGS= GOBIN="$tmp" go install -ldflags '-s -w' "$3"
  mv "$tmp"/* "$1"
  rm -rf "$tmp"
}

need_engine() {
  need_program dockerd docker.io
  need_program docker docker.io
  need_program iptables iptables
}

need_kind() {
  go_install "$cache/kind.tmp-program" "kind $kind_version" "sigs.k8s.io/kind@$kind_version"
  mkdir -p "$kind"
  mv "$cache/kind.tmp-program" "$kind/kind"
}

# --- the node's image

# In namespaces of its own, its mounts and processes end with it, however it ends.
make_root() { # FOLDER
  local packages
  packages=$(IFS=, && echo "${node_packages[*]}")
  (
    # apt runs what mmdebstrap gives it by a shell that knows no file descriptors above 9: those of the callers are closed.
    for fd in {3..9}; do eval "exec $fd>&-"; done
    TMPDIR=$1 exec unshare --mount --pid --fork --kill-child mmdebstrap --mode=root --variant=minbase \
      --include="$packages" --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' "$node_release" "$1/root.tar"
  ) &
  # unshare ignores SIGTERM.
  # shellcheck disable=SC2064
  trap "kill -KILL $!" TERM
  wait $!
}

need_root() {
  [[ ! -e $node_root ]] || return 0
  local tmp=$cache/kind-root.tmp
  need_program mmdebstrap mmdebstrap
  rm -rf --one-file-system "$tmp"
  mkdir "$tmp"
  slowly "make the node's root file system (2 to 5 minutes)" 0 make_root "$tmp"
  mv "$tmp/root.tar" "$node_root"
  rm -rf "$tmp"
}

units() { # FOLDER: what the node's systemd starts and does not start
  local unit system=$1/etc/systemd/system
  mkdir -p "$system/multi-user.target.wants"
  for unit in node-images.service kubelet.service network-policies.path claims.path; do
    ln -s "../$unit" "$system/multi-user.target.wants/$unit"
  done
  # What a container cannot do; and systemd-sysctl would set those of the machine.
  for unit in systemd-{sysctl,udevd,udev-trigger,logind,timesyncd,modules-load,networkd}.service \
    systemd-udevd-{kernel,control}.socket getty.target console-getty.service sys-kernel-{debug,tracing,config}.mount \
    dev-{hugepages,mqueue}.mount sys-fs-fuse-connections.mount e2scrub_reap.service {e2scrub_all,fstrim}.timer \
    apt-daily{,-upgrade}.timer dpkg-db-backup.timer; do
    ln -s /dev/null "$system/$unit"
  done
}

make_node_image() { # FOLDER
  local folder=$1/folder names name
  mapfile -t names < <("$kubernetes/kubeadm" config images list --kubernetes-version "$kubernetes_version")
  cp -R "$here/kind/node" "$folder"
  units "$folder"
  mkdir -p "$folder/usr/bin"
  cp "$kubernetes/kubernetes" "$folder/usr/bin/"
  for name in kubeadm kubectl kubelet; do ln -s kubernetes "$folder/usr/bin/$name"; done
  cp "$kube_router" "$folder/usr/bin/kube-router"
  echo "$kubernetes_version" >"$folder/kind/version"
  name=$(printf '%s\n' "${names[@]}" | grep /pause:)
  sed -i "s|@PAUSE@|$name|" "$folder/etc/containerd/config.toml"
  go build -o "$1/pause" -ldflags '-s -w' "$here/kind/pause.go"
  python3 "$here/kind/images.py" cluster "$folder/kind/images.tar" \
    --kubernetes "$kubernetes" --coredns "$coredns" --pause "$1/pause" "${names[@]}"
  python3 "$here/kind/images.py" node "$1/node.tar" "$node_image" "$node_root" "$folder"
}

need_node() {
  ((EUID == 0)) || fail "not root: making the node's image needs it"
  # kube-proxy's image gets this machine's.
  need_program iptables iptables
  need_root
  go_install "$coredns" "CoreDNS $coredns_version (4 minutes on 2 cores)" "github.com/coredns/coredns@$coredns_version"
  go_install "$kube_router" "kube-router $kube_router_version" \
    "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@$kube_router_version"
  need_go
  local tmp=$cache/kind-node.tmp
  rm -rf "$tmp"
  mkdir "$tmp"
  slowly "make the node's image" 0 make_node_image "$tmp"
  rm -f "$cache"/kind-node-*.tar
  mv "$tmp/node.tar" "$node_archive"
  rm -rf "$tmp"
}

# --- images of servers

need_image() { # FILE NAME ARGUMENT... (of images.py)
  [[ ! -e $1 ]] || return 0
  slowly "make the image $2" 0 python3 "$here/kind/images.py" program "$1.tmp" "${@:2}"
  mv "$1.tmp" "$1"
}

need_images() {
  need_image "$(redis_archive)" sync-operator-test/redis:7 "redis-server=$redis_server" redis-cli=/usr/bin/redis-cli \
    --folder /data
  need_image "$(mongodb_archive)" sync-operator-test/mongodb:6 "mongod=$mongod" \
    --folder /data/db --argument=--bind_ip_all
}

has_engine() { has_program dockerd && has_program docker && has_program iptables; }
has_kind() { [[ -x $kind/kind ]]; }
has_node() { [[ -e $node_archive ]]; }
has_images() { [[ -e $(redis_archive) && -e $(mongodb_archive) ]]; }

others=(kubectl)
if [[ " $* " == *" node "* ]] && ! has_node; then others+=(kubernetes); fi
[[ " $* " != *" images "* ]] || others+=(redis mongodb)
attended "$here/install.sh" "${others[@]}"
missing=()
for part; do "has_$part" || missing+=("$part"); done
if ((${#missing[@]})); then
  exec 8<"$cache"
  flock -n 8 || { say "waiting for another install.sh"; flock 8; }
  for part in "${missing[@]}"; do
    if ! "has_$part"; then "need_$part"; fi
  done
fi
