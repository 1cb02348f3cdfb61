#!/usr/bin/env bash
# run.sh [NAME...]: creates a kind cluster and runs the end-to-end tests, or the tests with a NAME in their names. The image
# contains the program that the other tests use. SYNC_OPERATOR_IMAGE=$(make image) uses the image of a release instead.
# CLUSTER=existing uses the cluster of KUBECONFIG, which must have the images: the operator's, sync-operator-test/redis:7 and
# sync-operator-test/mongodb:6.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ ${1-} != --inside ]]; then
  tests/chart/install.sh helm helm3
  [[ ${SYNC_OPERATOR_IMAGE:-} ]] || SYNC_OPERATOR_IMAGE=$(image/build.sh test)
  export SYNC_OPERATOR_IMAGE
  exec tests/cluster/with-kind.sh "$0" --inside "$@"
fi
shift

# shellcheck source-path=SCRIPTDIR
source tests/chart/paths.sh
if [[ ${SYNC_OPERATOR_KIND:-} ]]; then
  mapfile -t servers < <(tests/cluster/kind.sh images)
  tests/cluster/kind.sh --name "$SYNC_OPERATOR_KIND" load "$SYNC_OPERATOR_IMAGE" ${EARLIER_IMAGE:+"$EARLIER_IMAGE"} "${servers[@]}"
fi
# Compiled first, so that the compile time does not count as test time.
cargo test --quiet --test e2e --no-run
HELM3=$tools/helm3 HELM4=$tools/helm tests/scripts/timed.sh e2e --test e2e -- --test-threads=1 "$@"
