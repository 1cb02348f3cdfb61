#!/usr/bin/env bash
# check.sh [NAME...]: checks the Helm chart with Helm 3 and 4, every file of values/, the oldest and the newest Kubernetes, two
# scanners, its unit tests and its alerting rules. Each NAME selects a check: generated lint rendered scores tests rules package.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf 'check.sh: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# check WHAT COMMAND...: prints the output of COMMAND only if it fails. COMMAND runs in the background, because a function in
# the condition of an `if` would not stop at its first error.
check() {
  local what=$1 started=$SECONDS
  shift
  "$@" >"$work/output" 2>&1 &
  wait $! || { cat "$work/output" >&2; fail "failed: $what"; }
  say "$what: passed ($((SECONDS - started)) s)"
}

# --- rendering

values() { basename -a -s .yaml "$chart_tests"/values/*.yaml; }

render() { # HELM VALUES KUBERNETES
  "$1" template release "$chart" --namespace namespace --kube-version "$3" -f "$chart_tests/values/$2.yaml"
}

# --- checks

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

# The program ignores unknown variables, so a misspelled one would set nothing. HOSTNAME is not a setting: it names the worker.
settings() {
  local variables variable unknown=0
  mapfile -t variables < <(grep -rhoE '^ *- (\{name|name): [A-Z][A-Z0-9_]*' "$work/${kubernetes_versions[0]}/helm" |
    grep -oE '[A-Z0-9_]+$' | grep -vx HOSTNAME | sort -u)
  ((${#variables[@]} > 10)) || { echo "found no variables in the rendered chart"; return 1; }
  for variable in "${variables[@]}"; do
    grep -qF "\`$variable\`" "$root/docs/reference/configuration.md" || { echo "docs/reference/configuration.md has no variable $variable"; unknown=1; }
  done
  return "$unknown"
}

# Findings of the scanners that are allowed with default values. With every option enabled, there are none.
# - Pull policy IfNotPresent: the tag of a release does not change, and a pod can start while the registry is unavailable.
# - A tag instead of a digest: the registry assigns the digest at the push.
# - No NetworkPolicy: the addresses of Redis, MongoDB and the API server differ between clusters.

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
  ! grep -E '^sync-operator/tests/|\.gotmpl$' <<<"$files" || { echo "the package contains the files above: add them to .helmignore"; return 1; }
  grep -qx sync-operator/values.schema.json <<<"$files"
}

# Prints the spec of the PrometheusRule of a rendered chart.
rules_of() { # FILE
  with_python -c 'import sys, yaml
found = [o["spec"] for o in yaml.safe_load_all(open(sys.argv[1])) if o and o["kind"] == "PrometheusRule"]
assert len(found) == 1, found
print(yaml.safe_dump(found[0]))' "$1"
}

# Checks the rules file, and the PrometheusRule of the chart.
alerts() {
  "$prometheus/promtool" check rules --lint-fatal "$chart"/rules/*.yaml
  "$prometheus/promtool" test rules "$chart_tests/rules_test.yaml"
  render helm everything "${kubernetes_versions[1]}" >"$work/everything.yaml"
  rules_of "$work/everything.yaml" >"$work/rules.yaml"
  "$prometheus/promtool" check rules --lint-fatal "$work/rules.yaml"
  ! grep -nE 'namespace(=|: )"?sync-operator|sync-operator-metrics' "$work/rules.yaml" ||
    { echo "templates/prometheusrule.yaml did not replace the default names above"; return 1; }
}

wanted() { [[ " $only " == *" $1 "* ]]; }
only=${*:-generated lint rendered scores tests rules package}

# Tools of each check.
declare -A needed=(
  [generated]="helm helm-docs python" [lint]="helm helm3" [rendered]="helm helm3 kubeconform python schemas"
  [scores]="helm kube-score checkov" [tests]=helm-unittest [rules]="helm prometheus python" [package]=helm
)
for name in $only; do
  [[ -v needed[$name] ]] || fail "unknown check \"$name\"; the checks are: ${!needed[*]}"
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
