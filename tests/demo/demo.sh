#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
cache=${SYNC_OPERATOR_CACHE:-$HOME/.cache/sync-operator}
# shellcheck source-path=SCRIPTDIR source=../cluster/process.sh
source tests/cluster/process.sh
# shellcheck source-path=SCRIPTDIR source=../cluster/installing.sh
source tests/cluster/installing.sh

usage() {
  cat <<'END'
demo.sh up | down: shows a run without Kubernetes, and then the operator on Kubernetes. The script starts the servers.
CLUSTER=build, kind or envtest selects the Kubernetes (tests/demo/kubernetes.sh --help). CLUSTER=existing uses the servers of
KUBECONFIG, REDIS_URL and MONGODB_URI, and only a separate namespace and database. LOCAL=1 stops after the first run. USERS=N
seeds N users instead of 10000.
END
}

CLUSTER=${CLUSTER:-local}
rejected=3
# Number of documents of each kind in the source.
documents=40
kinds=(users projects issues pipelines)
run_limit=60
state=${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/demo-operator
log=$state/log
kubernetes_log=$state/kubernetes.log
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
programs=$CARGO_TARGET_DIR/debug
# Processes that stop with this script.
job='' watcher=''

step() { printf '\n==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
fail_with_log() { tail -n 20 "$log" >&2; fail "$*; its log is $log"; }
servers() { tests/cluster/cluster.sh --name demo "$@"; }
k() { kubectl --namespace "$namespace" "$@"; }

end_jobs() {
  [[ ! $job ]] || kill -- "-$job" 2>/dev/null || true
  [[ ! $watcher ]] || kill "$watcher" 2>/dev/null || true
}

# in_background LOG COMMAND...: sets job. A signal to this script stops all its processes.
in_background() {
  setsid "${@:2}" </dev/null >"$1" 2>&1 &
  job=$!
}

# --- the program

# Cargo shows a progress bar in a terminal.
compile() {
  local command=(cargo build --bin sync-operator --example seed --example gitlab) total
  if [[ -t 2 ]]; then
    "${command[@]}"
    return
  fi
  cargo fetch --quiet --locked
  total=$(cargo tree --quiet --edges normal,build,dev --prefix none --format '{p}' | sed 's/ (\*)$//' | sort -u | wc -l)
  counted='^ *Compiling ' units=crates
  # In a subshell, because slowly replaces the trap. In the background, so that a signal stops it immediately.
  (slowly "cargo build" "$total" "${command[@]}") &
  watcher=$!
  wait "$watcher"
  watcher=
}

build() {
  if [[ $CLUSTER == existing ]]; then
    step "Building sync-operator"
    compile
    return
  fi
  step "Building sync-operator, and downloading Redis and MongoDB"
  in_background "$state/install.log" tests/cluster/install.sh redis mongodb
  compile
  wait "$job" || { cat "$state/install.log" >&2; fail "could not install Redis and MongoDB"; }
  job=
}

without_password() { # MONGODB_URI
  if [[ $1 =~ ^([a-z+]+://)[^/@]*@(.*)$ ]]; then echo "${BASH_REMATCH[1]}***@${BASH_REMATCH[2]}"; else echo "$1"; fi
}

first_run() {
  local command=("$programs/sync-operator" run manifests/samples/user-sync.yaml)
  if [[ $CLUSTER != existing ]]; then
    step "Starting Redis and MongoDB"
    servers up redis mongodb
    eval "$(servers env)"
  fi
  step "Seeding ${USERS:-10000} users of 1 KB; a validator rejects updates of $rejected of them"
  "$programs/examples/seed" "${USERS:-10000}" "$rejected"
  step "Running a SyncJob without Kubernetes"
  echo "\$ export MONGODB_URI='$(without_password "$MONGODB_URI")' MONGODB_DATABASE=$MONGODB_DATABASE"
  echo "\$ ${command[*]}"
  "${command[@]}"
}

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
    fail "kubectl reaches no cluster: set KUBECONFIG, or select a context with kubectl config use-context"
}

choose_place() {
  case $CLUSTER in
    local | build | envtest | kind) namespace=default MONGODB_DATABASE=codex ;;
    # Seeding drops a collection, and the operator processes every object that it watches. Both must not affect other data.
    existing) namespace=sync-operator-demo MONGODB_DATABASE=sync_operator_demo ;;
    *) fail "CLUSTER must be local, build, envtest, kind or existing, not $CLUSTER" ;;
  esac
  export MONGODB_DATABASE
}

# Starts Kubernetes in the background of the first run, with low priority.
start_kubernetes() {
  [[ $CLUSTER != existing && ! ${LOCAL:-} ]] || return 0
  NICE=19 CLUSTER=$CLUSTER in_background "$kubernetes_log" tests/demo/kubernetes.sh up
}

use_kubernetes() {
  if [[ $CLUSTER == existing ]]; then
    step "Using the cluster of context $(kubectl config current-context 2>/dev/null || echo '(none)'), namespace $namespace"
    kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f -
    return
  fi
  step "Starting Kubernetes"
  # The demo now waits for Kubernetes. Only root can raise the priority.
  renice -n 0 -g "$job" >/dev/null 2>&1 || true
  tail -n +1 -s 0.2 -f --pid="$job" "$kubernetes_log"
  wait "$job" || fail "could not start Kubernetes; the reason is above, and in $kubernetes_log"
  job=
  eval "$(tests/demo/kubernetes.sh env)"
}

# --- operator

# Fails if the program is not running. $1: operator or gitlab.
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
  # The operator finishes its batches, which takes at most 25 s.
  await_end "$pid" 30 || { kill -KILL "$pid" && await_end "$pid" 5; } || fail "$1 (PID $pid) does not stop"
}

# $1: operator or gitlab, $2: its pid.
note_pid() {
  disown "$2"
  echo "$2 $(start_time "$2")" >"$state/$1.pid"
}

# Prints a port below the ephemeral ports, and the last one again if it is free. $1: operator or gitlab.
pick_port() {
  local port
  port=$(cat "$state/$1.port" 2>/dev/null) && ! port_is_taken "$port" && echo "$port" && return
  while port=$((14000 + RANDOM % 6000)); port_is_taken "$port"; do :; done
  echo "$port" | tee "$state/$1.port"
}

start_operator() {
  local pid end=$((SECONDS + 20)) access
  # Only this user has access to a cluster of the demo. On an existing cluster, the dashboard and changes require a login.
  access=(--insecure-no-auth)
  [[ $CLUSTER != existing ]] || access=(--read-access open)
  port=$(pick_port operator)
  setsid "$programs/sync-operator" all --http-address 127.0.0.1 --http-port "$port" --metrics-address 127.0.0.1 --metrics-port 0 \
    --queue-name demo --watch-namespace "$namespace" --workers 4 \
    --source-allowed-cidrs 127.0.0.0/8 "${access[@]}" </dev/null >"$log" 2>&1 &
  pid=$!
  note_pid operator "$pid"
  until curl -fs --noproxy '*' --max-time 5 -o /dev/null "http://127.0.0.1:$port/readyz"; do
    start_time "$pid" >/dev/null || fail_with_log "the operator stopped"
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
  setsid "$programs/examples/gitlab" "$port" "$documents" </dev/null >"$state/gitlab.log" 2>&1 &
  pid=$!
  note_pid gitlab "$pid"
  until gitlab=$(head -n 1 "$state/gitlab.log") && [[ $gitlab == http* ]]; do
    start_time "$pid" >/dev/null || { cat "$state/gitlab.log" >&2; fail "the GraphQL server stopped"; }
    ((SECONDS < end)) || fail "the GraphQL server does not answer after 20 s"
    sleep 0.1
  done
  echo "pid $pid, $gitlab"
}

# Applies the samples with another URL and other collections.
fetch_from_gitlab() {
  local kind
  k create secret generic gitlab --from-literal=token=glpat-demo --dry-run=client -o yaml | k apply -f - >/dev/null
  k annotate --overwrite secret gitlab "sync.codex.dev/hosts=$gitlab" >/dev/null
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

# --- output

# Sets run and phase.
look_at_run() {
  run='' phase=''
  read -r run phase < <(k get syncjobs -l sync.codex.dev/schedule=user-sync --sort-by=.metadata.creationTimestamp \
    -o 'jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}' 2>/dev/null) || true
}

watch_run() {
  local end=$((SECONDS + run_limit))
  # Not k, because its PID would be the PID of a subshell, and kubectl would outlive it.
  kubectl --namespace "$namespace" get syncjobs --watch 2>/dev/null &
  watcher=$!
  k apply -f manifests/samples/user-sync.yaml
  until look_at_run; [[ $phase == @(Complete|Failed) ]]; do
    ((SECONDS < end)) || break
    sleep 0.2
  done
  sleep 0.3 # until the watch shows the end, too
  { kill "$watcher" && wait "$watcher"; } 2>/dev/null || true
  watcher=
  if [[ $phase != Complete ]]; then
    k describe syncschedule/user-sync syncjob/"$run" >&2 || true
    fail_with_log "the run is ${phase:-missing} after $run_limit s, not Complete"
  fi
  # The schedule counts the run a moment later.
  k wait --for=jsonpath='{.status.activeCount}=0' --timeout=10s syncschedule/user-sync >/dev/null
}

call() {
  echo "\$ curl http://127.0.0.1:$port$1"
  curl -sS --noproxy '*' --max-time 5 "http://127.0.0.1:$port$1"
  echo
}

show_result() {
  step "The run: kubectl get syncjob $run -o yaml (status; failures lists the rejected users)"
  k get syncjob "$run" -o yaml | sed -n '/^status:/,$p'
  step "The schedule: kubectl get syncschedules -o wide"
  k get syncschedules -o wide
  k get syncschedule user-sync -o 'jsonpath=runs: {.status.runs}{"\n"}'
  step "Events"
  k get events --sort-by=.metadata.creationTimestamp -o custom-columns=TYPE:.type,REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message |
    grep -E "^TYPE|$run|user-sync "
  step "The HTTP API"
  call /jobs/status
  call /health
}

show_next_local_steps() {
  step "End of the first part. Next steps:"
  if [[ $CLUSTER != existing ]]; then
    # shellcheck disable=SC2016
    printf '  eval "$(%s/tests/cluster/cluster.sh --name demo env)"   # MONGODB_URI; MongoDB and Redis are still running\n' "$root"
  fi
  cat <<END
  export MONGODB_DATABASE=$MONGODB_DATABASE
  $programs/sync-operator run --help
  make demo                                     # the same with Kubernetes objects, on a schedule
  make demo-down                                # stops everything
END
}

show_next_steps() {
  local in=''
  step "The servers and the operator are still running. Next steps:"
  if [[ $CLUSTER == existing ]]; then
    in=" -n $namespace"
  else
    # shellcheck disable=SC2016
    printf '  eval "$(%s/tests/demo/kubernetes.sh env)"   # KUBECONFIG, and kubectl on the PATH\n' "$root"
  fi
  cat <<END
  kubectl$in get syncschedules,syncjobs
  kubectl$in apply -f manifests/samples/one-off.yaml    # a single Full run; then: kubectl$in get syncjobs --watch
  kubectl$in patch ssched user-sync --type merge -p '{"spec":{"suspended":true}}'
  curl http://127.0.0.1:$port/jobs/status
  xdg-open http://127.0.0.1:$port/              # the dashboard
  tail -f $log
  make demo-down                                # stops everything
END
}

# --- commands

up() {
  local previous
  previous=$(cat "$state/kubernetes" 2>/dev/null || true)
  command -v cargo >/dev/null || fail "cargo is not installed: see https://rustup.rs"
  choose_place
  mkdir -p "$state" "$cache"
  [[ $previous == @(|"$CLUSTER") || ($CLUSTER == local && $previous != existing) ]] ||
    fail "the demo already runs on $previous; stop it with make demo-down"
  if [[ $CLUSTER == existing ]]; then
    check_environment
    echo existing >"$state/kubernetes"
  fi
  trap end_jobs EXIT
  build
  start_kubernetes
  first_run
  if [[ ${LOCAL:-} ]]; then
    show_next_local_steps
    return
  fi
  use_kubernetes
  step "Installing the custom resource definitions"
  kubectl apply -f crds/
  # With condition=Established, kubectl fails while a kind has no status.
  kubectl wait --for='jsonpath={.status.conditions[?(@.type=="Established")].status}=True' --timeout=30s \
    crd/syncschedules.sync.codex.dev crd/syncjobs.sync.codex.dev crd/syncalerts.sync.codex.dev
  step "Starting the operator"
  k delete syncschedule user-sync "${kinds[@]/#/gitlab-}" --ignore-not-found
  k delete syncjobs -l sync.codex.dev/schedule
  stop operator
  start_operator
  step "kubectl apply -f manifests/samples/user-sync.yaml; kubectl get syncjobs --watch"
  watch_run
  show_result
  step "Starting a GraphQL server with a part of GitLab's schema; $documents documents of each kind have only an ID"
  stop gitlab
  start_gitlab
  step "kubectl apply -f manifests/samples/gitlab/{$(IFS=,; echo "${kinds[*]}")}.yaml, with its URL: each run fills its documents from GitLab (8 s, at most 600 requests per minute)"
  fetch_from_gitlab
  show_next_steps
}

down() {
  # The value that `up` used, whatever CLUSTER is now.
  CLUSTER=$(cat "$state/kubernetes" 2>/dev/null || echo "$CLUSTER")
  choose_place
  step "Stopping the operator"
  stop operator
  stop gitlab
  if [[ $CLUSTER != existing ]]; then
    step "Stopping the servers and deleting their data"
    tests/demo/kubernetes.sh down
    servers down
  fi
  rm -rf "$state"
  [[ $CLUSTER == existing ]] || return 0
  rmdir --ignore-fail-on-non-empty "$(dirname "$state")" 2>/dev/null || true
  step "Deleting the namespace $namespace"
  kubectl delete namespace "$namespace" --ignore-not-found
  cat <<END
The custom resource definitions remain. This command deletes them, with every SyncSchedule, SyncJob and SyncAlert:
  kubectl delete -f crds/
The database $MONGODB_DATABASE remains in MongoDB, and keys with {sync:demo} in Redis.
END
}

case ${1:-} in
  up | down) "$1" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
