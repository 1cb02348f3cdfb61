#!/usr/bin/env bash
# Shows the operator at work: demo.sh up | down. CLUSTER=existing uses KUBECONFIG, REDIS_URL and MONGODB_URI of
# the environment instead of servers of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
CLUSTER=${CLUSTER:-local}
USERS=${USERS:-10000}
REJECTED=3
state="${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/demo-operator"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}/target}"
export MONGODB_DATABASE="${MONGODB_DATABASE:-codex}"

step() { printf '\n==> %s\n' "$*"; }
fail() { echo "error: $*" >&2; exit 1; }
servers() { tests/cluster/cluster.sh --name demo "$@"; }

use_servers() {
  case $CLUSTER in
    local)
      step "Starting a Kubernetes control plane, Redis and MongoDB"
      servers up
      eval "$(servers env)" ;;
    existing)
      command -v kubectl >/dev/null || fail "kubectl is not installed"
      [ -n "${REDIS_URL:-}" ] || fail "CLUSTER=existing needs REDIS_URL, such as redis://localhost:6379"
      [ -n "${MONGODB_URI:-}" ] || fail "CLUSTER=existing needs MONGODB_URI, such as mongodb://localhost:27017/?replicaSet=rs0"
      kubectl version >/dev/null 2>&1 || fail "kubectl reaches no cluster: set KUBECONFIG" ;;
    *) fail "CLUSTER must be local or existing, not $CLUSTER" ;;
  esac
}

# The pid of our operator, if it is still the process we started.
operator_pid() {
  local pid; pid=$(cat "$state/pid" 2>/dev/null) || return 1
  [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$CARGO_TARGET_DIR"/release/sync-operator* ]] && echo "$pid"
}

stop_operator() {
  local pid; pid=$(operator_pid) || return 0
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 300); do [ -d "/proc/$pid" ] || return 0; sleep 0.1; done
  fail "the operator (pid $pid) does not stop; its log is $state/log"
}

start_operator() {
  mkdir -p "$state"
  [ -s "$state/port" ] || python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' > "$state/port"
  port=$(cat "$state/port")
  setsid "$CARGO_TARGET_DIR/release/sync-operator" all --http-address 127.0.0.1 --http-port "$port" \
    --queue-name demo </dev/null >"$state/log" 2>&1 &
  echo $! > "$state/pid"
  for _ in $(seq 100); do
    curl -fs "http://127.0.0.1:$port/readyz" >/dev/null 2>&1 && return
    sleep 0.1
  done
  tail -n 20 "$state/log" >&2
  fail "the operator is not ready after 10 s; its log is $state/log"
}

watch_run() {
  local watcher job="" phase=""
  kubectl get syncjobs --watch --output-watch-events=false 2>/dev/null & watcher=$!
  # shellcheck disable=SC2064 # the pid is known now
  trap "kill $watcher 2>/dev/null || true" EXIT
  for _ in $(seq 300); do
    job=$(kubectl get syncjobs -l sync.codex.dev/schedule=user-sync -o name)
    [ -n "$job" ] && phase=$(kubectl get "$job" -o 'jsonpath={.status.phase}')
    case $phase in Complete | Failed) break ;; esac
    sleep 0.2
  done
  sleep 0.5
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  [ "$phase" = Complete ] || fail "the run is ${phase:-not there} after 60 s, not Complete; the operator's log is $state/log"
  run=$job
}

up() {
  use_servers
  step "Building the operator (release; several minutes the first time)"
  cargo build --release --bin sync-operator --example seed
  step "Seeding $USERS users of 1 KB; a validator refuses updates of $REJECTED of them"
  "$CARGO_TARGET_DIR/release/examples/seed" "$USERS" "$REJECTED"
  step "Installing the resources SyncSchedule and SyncJob"
  kubectl apply -f crds/
  kubectl wait --for=condition=Established --timeout=30s crd/syncschedules.sync.codex.dev crd/syncjobs.sync.codex.dev >/dev/null
  step "Starting the operator"
  kubectl delete syncschedule user-sync --ignore-not-found --cascade=foreground >/dev/null
  kubectl delete syncjobs -l sync.codex.dev/schedule=user-sync >/dev/null
  stop_operator
  start_operator
  step "kubectl apply -f manifests/samples/user-sync.yaml; kubectl get syncjobs --watch"
  kubectl apply -f manifests/samples/user-sync.yaml
  watch_run
  step "The run's status"
  kubectl get "$run" -o yaml | sed -n '/^status:/,$p'
  step "The schedule"
  kubectl get syncschedules -o wide
  kubectl get syncschedule user-sync -o 'jsonpath={.status.runs}{"\n"}'
  step "curl /jobs/status; curl /health"
  curl -fsS "http://127.0.0.1:$port/jobs/status"; echo
  curl -fsS "http://127.0.0.1:$port/health"; echo
  step "Everything keeps running. To go on:"
  if [ "$CLUSTER" = local ]; then
    echo "  eval \"\$(tests/cluster/cluster.sh --name demo env)\""
  fi
  cat <<TEXT
  kubectl get syncschedules,syncjobs
  kubectl patch syncschedule user-sync --type merge -p '{"spec":{"suspended":true}}'
  curl http://127.0.0.1:$port/jobs/status
  tail -f $state/log
  make demo-down                              # ends it
TEXT
}

down() {
  stop_operator
  rm -rf "$state"
  if [ "$CLUSTER" = local ]; then
    servers down
  else
    kubectl delete syncschedule user-sync --ignore-not-found
    echo "The resources stay installed; kubectl delete -f crds/ removes them and every SyncSchedule and SyncJob."
  fi
}

case ${1:-} in up | down) "$1" ;; *) fail "usage: demo.sh up|down" ;; esac
