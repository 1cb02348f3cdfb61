#!/usr/bin/env bash
# Checks the Helm chart: with Helm 3 and 4, every file of values/, the oldest and the newest Kubernetes, two scanners
# and the chart's own tests, and its alerts and dashboard. `check.sh NAME...` does only some: generated lint rendered scores
# tests rules package.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf 'check.sh: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# check WHAT COMMAND...: shows the output of COMMAND only if it fails. In the background, because in the condition of an
# `if` a function would not stop at its first error.
check() {
  local what=$1 started=$SECONDS
  shift
  "$@" >"$work/output" 2>&1 &
  wait $! || { cat "$work/output" >&2; fail "failed: $what"; }
  say "$what: fine ($((SECONDS - started)) s)"
}

# --- rendering

values() { basename -a -s .yaml "$chart_tests"/values/*.yaml; }

render() { # HELM VALUES KUBERNETES
  "$1" template release "$chart" --namespace namespace --kube-version "$3" -f "$chart_tests/values/$2.yaml"
}

# --- what is checked

lint() { # HELM
  local name
  for name in $(values); do
    "$1" lint --strict --kube-version "${kubernetes_versions[0]}" --namespace namespace "$chart" -f "$chart_tests/values/$name.yaml"
  done
}

valid() { # KUBERNETES FILE...
  local version=$1
  shift
  kubeconform -strict -summary -kubernetes-version "$version" \
    -schema-location "$schemas/{{.NormalizedKubernetesVersion}}/{{.ResourceKind}}{{.KindSuffix}}.json" \
    -schema-location "$schemas/crds/{{.ResourceKind}}{{.KindSuffix}}.json" \
    -schema-location "$work/crds/{{.ResourceKind}}{{.KindSuffix}}.json" "$@"
}

rendered() { # KUBERNETES
  local helm name
  for helm in helm3 helm; do
    mkdir -p "$work/$1/$helm"
    for name in $(values); do
      render "$helm" "$name" "$1" >"$work/$1/$helm/$name.yaml"
    done
  done
  diff -rubB "$work/$1/helm3" "$work/$1/helm"
  valid "$1" "$work/$1/helm" "$root"/manifests/{install.yaml,samples}
}

# A misspelled variable would set nothing, and nobody would say so. HOSTNAME is no setting, but the name of a worker.
settings() {
  local variables variable unknown=0
  mapfile -t variables < <(grep -rhoE '^ *- (\{name|name): [A-Z][A-Z0-9_]*' "$work/${kubernetes_versions[0]}/helm" |
    grep -oE '[A-Z0-9_]+$' | grep -vx HOSTNAME | sort -u)
  ((${#variables[@]} > 10)) || { echo "no variables found"; return 1; }
  for variable in "${variables[@]}"; do
    grep -qF "\`$variable\`" "$root/docs/reference/configuration.md" || { echo "no setting: $variable"; unknown=1; }
  done
  return "$unknown"
}

# What the scanners may find in an installation by default; with everything on, they find nothing.
# - Pull policy IfNotPresent: the tag of a release does not change, and a pod also starts while the registry is away.
# - A tag instead of a digest: only who pushed the image knows that.
# - No NetworkPolicy: where Redis, MongoDB and the API server are has to be known first.

scored() { # VALUES EXCEPTION...
  local file=$work/$1.yaml
  render helm "$1" "${kubernetes_versions[1]}" >"$file"
  shift
  kube-score score --kubernetes-version v1.33 --exit-one-on-warning "${@/#/--ignore-test=}" "$file"
}

scanned() { # VALUES EXCEPTION...
  local file=$work/$1.yaml
  render helm "$1" "${kubernetes_versions[1]}" >"$file"
  shift
  run_checkov --config-file "$chart_tests/checkov.yaml" "${@/#/--skip-check=}" -f "$file"
}

packaged() {
  local files
  helm package "$chart" --destination "$work"
  files=$(tar -tzf "$work"/sync-operator-*.tgz)
  ! grep -E '^sync-operator/tests/|\.gotmpl$' <<<"$files" || { echo "these files do not belong into the package: .helmignore"; return 1; }
  grep -qx sync-operator/values.schema.json <<<"$files"
}

# What the PrometheusRules of a rendered chart hold.
rules_of() { # FILE
  with_python -c 'import sys, yaml
found = [o["spec"] for o in yaml.safe_load_all(open(sys.argv[1])) if o and o["kind"] == "PrometheusRule"]
assert len(found) == 1, found
print(yaml.safe_dump(found[0]))' "$1"
}

# As the file is, and as it is installed.
alerts() {
  "$prometheus/promtool" check rules --lint-fatal "$chart"/rules/*.yaml
  "$prometheus/promtool" test rules "$chart_tests/rules_test.yaml"
  render helm everything "${kubernetes_versions[1]}" >"$work/everything.yaml"
  rules_of "$work/everything.yaml" >"$work/rules.yaml"
  "$prometheus/promtool" check rules --lint-fatal "$work/rules.yaml"
  ! grep -nE 'namespace(=|: )"?sync-operator|sync-operator-metrics' "$work/rules.yaml" ||
    { echo "these are the names of a release by default: templates/prometheusrule.yaml"; return 1; }
}

wanted() { [[ " $only " == *" $1 "* ]]; }
only=${*:-generated lint rendered scores tests rules package}

# Each check needs only tools of its own.
declare -A needed=(
  [generated]="helm helm-docs python" [lint]="helm helm3" [rendered]="helm helm3 kubeconform python schemas"
  [scores]="helm kube-score checkov" [tests]=helm-unittest [rules]="helm prometheus python" [package]=helm
)
for name in $only; do
  [[ -v needed[$name] ]] || fail "no check \"$name\": ${!needed[*]}"
  # shellcheck disable=SC2086
  "$chart_tests/install.sh" ${needed[$name]}
done
if wanted generated; then
  check "generated files" "$chart_tests/generate.sh" --check
fi
if wanted lint; then
  for helm in helm3 helm; do
    check "$helm lint --strict, $(values | wc -l) files of values" lint "$helm"
  done
fi
if wanted rendered; then
  with_python "$chart_tests/schemas.py" crds "$work/crds" "$root"/crds/*.yaml
  for version in "${kubernetes_versions[@]}"; do
    check "objects for Kubernetes $version, $(values | wc -l) files of values and manifests/" rendered "$version"
  done
  check "variables" settings
fi
if wanted scores; then
  check "kube-score of default.yaml" scored default container-image-pull-policy pod-networkpolicy
  check "kube-score of everything.yaml" scored everything
  check "checkov of default.yaml" scanned default CKV_K8S_15,CKV_K8S_43,CKV2_K8S_6
  check "checkov of everything.yaml" scanned everything
fi
if wanted tests; then
  check "the chart's own tests" helm-unittest --strict "$chart"
fi
if wanted rules; then
  check "alerts" alerts
fi
if wanted package; then
  check "helm package" packaged
fi
