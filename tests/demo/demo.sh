#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
# shellcheck source-path=SCRIPTDIR source=../cluster/process.sh
source tests/cluster/process.sh

usage() {
  cat <<'END'
demo.sh up | down: shows the operator at work, on servers of its own or, with CLUSTER=existing, on those of
KUBECONFIG, REDIS_URL and MONGODB_URI. There it works in a namespace and a database of its own only.
USERS=N seeds N users instead of 10000.
END
}

CLUSTER=${CLUSTER:-local}
rejected=3
# What the source has of each kind.
documents=100
kinds=(users projects issues pipelines)
run_limit=60
state=${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/demo-operator
log=$state/log
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}/target}

step() { printf '\n==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
fail_with_log() { tail -n 20 "$log" >&2; fail "$*; its log is $log"; }
servers() { tests/cluster/cluster.sh --name demo "$@"; }
k() { kubectl --namespace "$namespace" "$@"; }

# --- servers

check_environment() {
  local missing=()
  command -v kubectl >/dev/null || missing+=("kubectl (https://kubernetes.io/docs/tasks/tools/)")
  command -v curl >/dev/null || missing+=(curl)
  [[ ${REDIS_URL:-} ]] || missing+=("REDIS_URL, such as redis://localhost:6379")
  [[ ${MONGODB_URI:-} ]] || missing+=("MONGODB_URI, such as mongodb://localhost:27017/?replicaSet=rs0")
  if ((${#missing[@]})); then
    printf -v missing '%s; ' "${missing[@]}"
    fail "CLUSTER=existing lacks ${missing%; }"
  fi
  kubectl version --request-timeout=10s >/dev/null 2>&1 ||
    fail "kubectl reaches no cluster: set KUBECONFIG, or choose one with kubectl config use-context"
}

choose_place() {
  case $CLUSTER in
    local) namespace=default MONGODB_DATABASE=codex ;;
    # Seeding drops a collection and the operator works on every object it sees: neither may meet the user's own.
    existing) namespace=sync-operator-demo MONGODB_DATABASE=sync_operator_demo ;;
    *) fail "CLUSTER must be local or existing, not $CLUSTER" ;;
  esac
  export MONGODB_DATABASE
}

use_servers() {
  if [[ $CLUSTER == local ]]; then
    step "Starting a Kubernetes control plane, Redis and MongoDB"
    servers up
    eval "$(servers env)"
  else
    step "Using the cluster of context $(kubectl config current-context 2>/dev/null || echo '(none)'), namespace $namespace"
    check_environment
    kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f -
  fi
  mkdir -p "$state"
  echo "$CLUSTER" >"$state/cluster"
}

# --- operator

# Fails if it does not run. $1: operator or gitlab.
pid_of() {
  local pid started
  read -r pid started 2>/dev/null <"$state/$1.pid" || return 1
  [[ $started && $(start_time "$pid") == "$started" ]] && echo "$pid"
}

# $1: operator or gitlab.
stop() {
  local pid
  pid=$(pid_of "$1" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  # The operator lets the work in flight end, for 25 s at most.
  await_end "$pid" 30 || { kill -KILL "$pid" && await_end "$pid" 5; } || fail "the $1 (pid $pid) does not stop"
}

# $1: operator or gitlab, $2: its pid.
note_pid() {
  disown "$2"
  echo "$2 $(start_time "$2")" >"$state/$1.pid"
}

# Prints a port below those that outgoing connections get; the last one again if it is free. $1: operator or gitlab.
pick_port() {
  local port
  port=$(cat "$state/$1.port" 2>/dev/null) && ! port_is_taken "$port" && echo "$port" && return
  while port=$((14000 + RANDOM % 6000)); port_is_taken "$port"; do :; done
  echo "$port" | tee "$state/$1.port"
}

start_operator() {
  local pid end=$((SECONDS + 20)) access=()
  # Nobody else is on a cluster of our own; on another one, who uses the calls and the dashboard has to log in.
  [[ $CLUSTER == existing ]] || access=(--insecure-no-auth)
  port=$(pick_port operator)
  setsid "$CARGO_TARGET_DIR/release/sync-operator" all --http-address 127.0.0.1 --http-port "$port" --metrics-address 127.0.0.1 --metrics-port 0 \
    --queue-name demo --watch-namespace "$namespace" --workers 4 \
    --source-allowed-cidrs 127.0.0.0/8 "${access[@]}" </dev/null >"$log" 2>&1 &
  pid=$!
  note_pid operator "$pid"
  until curl -fs --noproxy '*' --max-time 5 -o /dev/null "http://127.0.0.1:$port/readyz"; do
    start_time "$pid" >/dev/null || fail_with_log "the operator ended"
    ((SECONDS < end)) || fail_with_log "the operator is not ready after 20 s"
    sleep 0.1
  done
  echo "pid $pid, http://127.0.0.1:$port, log $log"
}

# --- source

# Sets gitlab, its address.
start_gitlab() {
  local port pid end=$((SECONDS + 20))
  port=$(pick_port gitlab)
  : >"$state/gitlab.log"
  setsid "$CARGO_TARGET_DIR/release/examples/gitlab" "$port" "$documents" </dev/null >"$state/gitlab.log" 2>&1 &
  pid=$!
  note_pid gitlab "$pid"
  until gitlab=$(head -n 1 "$state/gitlab.log") && [[ $gitlab == http* ]]; do
    start_time "$pid" >/dev/null || { cat "$state/gitlab.log" >&2; fail "the GraphQL server ended"; }
    ((SECONDS < end)) || fail "the GraphQL server does not answer after 20 s"
    sleep 0.1
  done
  echo "pid $pid, $gitlab"
}

# The samples, but for the address and the collection.
fetch_from_gitlab() {
  local kind
  k create secret generic gitlab --from-literal=token=glpat-demo --dry-run=client -o yaml | k apply -f - >/dev/null
  k annotate --overwrite secret gitlab sync.codex.dev/hosts=127.0.0.1 >/dev/null
  for kind in "${kinds[@]}"; do
    sed -e "s#https://gitlab.com/api/graphql#$gitlab#" \
      -e "s#^\( *\)keyField: gitlabId#&\n\1collection: gitlab_$kind#" \
      -e 's#^  interval: .*#&\n  immediate: true#' "manifests/samples/gitlab/$kind.yaml" | k apply -f -
  done
  for kind in "${kinds[@]}"; do
    k wait --for=jsonpath='{.status.runs.succeeded}=1' --timeout=120s "syncschedule/gitlab-$kind" >/dev/null || {
      k describe "syncschedule/gitlab-$kind" >&2
      fail_with_log "the run of gitlab-$kind has not succeeded after 120 s"
    }
  done
  k get syncjobs -l "sync.codex.dev/schedule in ($(printf 'gitlab-%s,' "${kinds[@]}" | sed 's/,$//'))"
}

# --- what is shown

# Sets run and phase.
look_at_run() {
  run='' phase=''
  read -r run phase < <(k get syncjobs -l sync.codex.dev/schedule=user-sync --sort-by=.metadata.creationTimestamp \
    -o 'jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}' 2>/dev/null) || true
}

watch_run() {
  local watcher end=$((SECONDS + run_limit))
  # Not k: the pid would be a subshell's, and kubectl outlive it.
  kubectl --namespace "$namespace" get syncjobs --watch 2>/dev/null &
  watcher=$!
  # shellcheck disable=SC2064 # its pid, now
  trap "kill $watcher 2>/dev/null || true" EXIT
  k apply -f manifests/samples/user-sync.yaml
  until look_at_run; [[ $phase == @(Complete|Failed) ]]; do
    ((SECONDS < end)) || break
    sleep 0.2
  done
  sleep 0.3 # for the watch to show the end too
  { kill "$watcher" && wait "$watcher"; } 2>/dev/null || true
  trap - EXIT
  if [[ $phase != Complete ]]; then
    k describe syncschedule/user-sync syncjob/"$run" >&2 || true
    fail_with_log "the run is ${phase:-not there} after $run_limit s, not Complete"
  fi
  # The schedule counts it a moment later.
  k wait --for=jsonpath='{.status.activeCount}=0' --timeout=10s syncschedule/user-sync >/dev/null
}

call() {
  echo "\$ curl http://127.0.0.1:$port$1"
  curl -sS --noproxy '*' --max-time 5 "http://127.0.0.1:$port$1"
  echo
}

show_result() {
  step "The run: kubectl get syncjob $run -o yaml (status; the refused users stand in failures)"
  k get syncjob "$run" -o yaml | sed -n '/^status:/,$p'
  step "The schedule: kubectl get syncschedules -o wide"
  k get syncschedules -o wide
  k get syncschedule user-sync -o 'jsonpath=runs: {.status.runs}{"\n"}'
  step "Events"
  k get events --sort-by=.metadata.creationTimestamp -o custom-columns=TYPE:.type,REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message |
    grep -E "^TYPE|$run|user-sync "
  step "The HTTP calls"
  call /jobs/status
  call /health
}

show_how_to_go_on() {
  local in=''
  step "Everything keeps running. To go on:"
  if [[ $CLUSTER == local ]]; then
    # shellcheck disable=SC2016
    printf '  eval "$(%s/tests/cluster/cluster.sh --name demo env)"   # KUBECONFIG, and kubectl on the PATH\n' "$root"
  else
    in=" -n $namespace"
  fi
  cat <<END
  kubectl$in get syncschedules,syncjobs
  kubectl$in apply -f manifests/samples/one-off.yaml    # a Full run by hand; then: kubectl$in get syncjobs --watch
  kubectl$in patch ssched user-sync --type merge -p '{"spec":{"suspended":true}}'
  curl http://127.0.0.1:$port/jobs/status
  xdg-open http://127.0.0.1:$port/              # the dashboard
  tail -f $log
  make demo-down                                # ends it
END
}

# --- commands

up() {
  command -v cargo >/dev/null || fail "cargo is not installed: see https://rustup.rs"
  choose_place
  use_servers
  step "Building the operator (release; about 10 minutes the first time)"
  cargo build --release --bin sync-operator --example seed --example gitlab
  step "Seeding ${USERS:-10000} users of 1 KB; a validator refuses updates of $rejected of them"
  "$CARGO_TARGET_DIR/release/examples/seed" "${USERS:-10000}" "$rejected"
  step "Installing the resources SyncSchedule, SyncJob and SyncAlert"
  kubectl apply -f crds/
  kubectl wait --for=condition=Established --timeout=30s crd/syncschedules.sync.codex.dev crd/syncjobs.sync.codex.dev crd/syncalerts.sync.codex.dev
  step "Starting the operator"
  k delete syncschedule user-sync "${kinds[@]/#/gitlab-}" --ignore-not-found
  k delete syncjobs -l sync.codex.dev/schedule
  stop operator
  start_operator
  step "kubectl apply -f manifests/samples/user-sync.yaml; kubectl get syncjobs --watch"
  watch_run
  show_result
  step "Starting a GraphQL server with a part of GitLab's schema; $documents documents of each kind know only their ids"
  stop gitlab
  start_gitlab
  step "kubectl apply -f manifests/samples/gitlab/{$(IFS=,; echo "${kinds[*]}")}.yaml, with its address: each document gets what GitLab has (20 s: at most 600 requests a minute)"
  fetch_from_gitlab
  show_how_to_go_on
}

down() {
  # What `up` used, whatever this call was told.
  CLUSTER=$(cat "$state/cluster" 2>/dev/null || echo "$CLUSTER")
  choose_place
  step "Stopping the operator"
  stop operator
  stop gitlab
  rm -rf "$state"
  if [[ $CLUSTER == local ]]; then
    step "Stopping the servers and deleting their data"
    servers down
    return
  fi
  rmdir --ignore-fail-on-non-empty "$(dirname "$state")" 2>/dev/null || true
  step "Deleting the namespace $namespace"
  kubectl delete namespace "$namespace" --ignore-not-found
  cat <<END
The resources stay installed. This removes them, and every SyncSchedule and SyncJob in the cluster with them:
  kubectl delete -f crds/
The database $MONGODB_DATABASE stays in MongoDB, and keys that hold {sync:demo} in Redis.
END
}

case ${1:-} in
  up | down) "$1" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
