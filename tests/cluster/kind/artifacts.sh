# shellcheck shell=bash disable=SC2034,SC2154
# Versions and paths of the parts of a kind cluster. kind.sh and kind/install.sh source it after paths.sh.

kind_version=v0.33.0
coredns_version=v1.14.6
kube_router_version=v2.1.0
kind=$cache/kind-$kind_version
coredns=$cache/coredns-$coredns_version
kube_router=$cache/kube-router-$kube_router_version

# Debian packages in the node.
node_release=bookworm
node_packages=(
  systemd systemd-sysv dbus containerd runc containernetworking-plugins iptables ipset iproute2 ethtool socat
  conntrack kmod procps ca-certificates
)

key() { sha256sum | cut -c -16; }

root_key=$(echo "$node_release ${node_packages[*]}" | key)
node_key=$(
  cd "$here/kind" || exit
  {
    echo "$root_key ${kubernetes##*/} $coredns_version $kube_router_version"
    cat images.py install.sh pause.go
    find node -type f -printf '%p %m ' -exec sha256sum {} \; | LC_ALL=C sort
  } | key
)
node_root=$cache/kind-root-$root_key.tar
node_image=sync-operator-test/node:$node_key
node_archive=$cache/kind-node-$node_key.tar

redis_archive() { echo "$cache/kind-redis-$(cat "$here/kind/images.py" "$redis_server" | key).tar"; }
mongodb_archive() { echo "$cache/kind-mongodb-$({ cat "$here/kind/images.py" && echo "${mongod##*/}"; } | key).tar"; }

# Docker engine that kind.sh starts. Its images remain in the cache.
engine=$cache/docker
engine_socket=$engine/docker.sock
