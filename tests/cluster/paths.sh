# shellcheck shell=bash disable=SC2034
# Versions and paths of the test servers. install.sh and cluster.sh source it.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}

kubernetes_version=v1.37.2
version_package=k8s.io/component-base/version
# Without debug information, which the linker would omit, the compiler takes an eighth less time. Without inlining in the
# packages of Kubernetes, it takes another fifth less, and the API server is as fast. All programs use the same flags, because
# Go caches by flags.
build_flags=(
  -mod=readonly -buildvcs=false -trimpath -gcflags=all=-dwarf=false '-gcflags=k8s.io/...=-dwarf=false -l'
  -ldflags "-s -w -X $version_package.gitVersion=$kubernetes_version -X $version_package.gitMajor=1 -X $version_package.gitMinor=37"
)

source_key() { # SOURCE... of a program in kubernetes/
  local sum
  sum=$(cd "$here/kubernetes" && { cat "$@" go.mod go.sum && echo "${build_flags[@]}"; } | sha256sum)
  echo "${sum:0:16}"
}

# All of Kubernetes, for the node of a kind cluster.
kubernetes=$cache/kubernetes-$(source_key main.go)
# Programs of cluster.sh: etcd, kube-apiserver and kube-controller-manager as one program, and kubectl.
control_plane=$cache/control-plane-$(source_key control-plane/main.go control-plane/controllers.go)
kubectl_version=1.37.1
kubectl=$cache/kubectl-$kubectl_version
mongod=$cache/mongod-6.0.5
redis_server=$cache/redis-server
prometheus=$cache/prometheus
nginx=$cache/nginx
faketime=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
chromedriver=/usr/bin/chromedriver
# axe-core, which checks the accessibility of a page.
axe=$cache/axe-0.1.8.min.js
# BullMQ and Bull Board, which read the mirror, with Node.js.
readers=$cache/bullmq-$(cat "$here"/../bullmq/* | sha256sum | cut -c -16)
nodejs=$cache/nodejs-24.19.0
# A mail server.
aiosmtpd=$cache/aiosmtpd-1.4.6
toxiproxy_version=v2.5.0
toxiproxy=$cache/toxiproxy-$toxiproxy_version
schemathesis=$cache/schemathesis-$(sha256sum <"$here/../openapi/requirements.txt" | cut -c -16)
