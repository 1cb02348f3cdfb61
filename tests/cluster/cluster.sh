#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/process.sh"

usage() {
  cat <<'END'
cluster.sh [--name NAME] COMMAND: a Kubernetes control plane (without nodes), a Redis server and
a one-member MongoDB replica set on 127.0.0.1. Each NAME (default: dev) has its own.

  up [kube] [redis] [mongodb]  start what is not running (default: these) and wait until it is ready
     CONTROL_PLANE=FOLDER      takes etcd, kube-apiserver and kubectl from FOLDER, such as that of envtest, and does not
                               build them; without a kube-controller-manager in it, nobody collects garbage
     [mongodb3]                instead of mongodb: a replica set of three members, and toxiproxy with a
                               proxy before each of them, and four each before the apiserver and Redis
  down                         stop everything of this NAME and delete its data
  stop COMPONENT...            stop (SIGTERM; after 10 s SIGKILL), keeping data and port;
                               gracefully ending takes etcd 5 s and the apiserver nearly 10 s
  kill COMPONENT...            the same with SIGKILL at once
  start COMPONENT...           start again and wait until ready
  status                       a line per component; exit code 0 if all that were started run
  env                          lines for eval: KUBECONFIG, REDIS_URL, MONGODB_URI, PATH with kubectl, and
                               TOXIPROXY_URL, whose /proxies lists the proxies
  kubeconfig                   the path of an administrator's kubeconfig
  kubectl ARGUMENT...          run kubectl against it

COMPONENT: etcd apiserver controller-manager redis mongodb mongodb1 mongodb2 mongodb3 toxiproxy
Data and logs: ${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/NAME
END
}

members=(mongodb1 mongodb2 mongodb3)
components=(etcd apiserver controller-manager redis mongodb "${members[@]}" toxiproxy)
# Ports of a NAME, each at its place after the first.
ports=(
  etcd etcd-peer apiserver controller-manager redis mongodb "${members[@]}" toxiproxy "${members[@]/%/-proxy}"
  apiserver-{0..3} redis-{0..3}
)
ready_limit=60
root=${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}
name=dev

fail() { printf 'cluster.sh: %s\n' "$*" >&2; exit 1; }

fail_component() { # COMPONENT WHAT
  local log=$dir/$1.log
  {
    printf 'cluster.sh: %s of "%s" %s; the end of %s:\n' "$1" "$name" "$2" "$log"
    # Of mongod's log, what is more than information.
    grep -v '"s":"I"' "$log" | tail -n 15 | cut -c -400 || true
  } >&2
  exit 1
}

# --- state folder, lock and ports

# Held on the folder itself: a lock file would be left behind by `down`.
lock() {
  while true; do
    mkdir -p "$dir"
    exec 9<"$dir"
    flock 9
    [[ /dev/fd/9 -ef $dir ]] && return # or else `down` removed it in the meantime
  done
}

need_state() { [[ -e $dir/prepared ]] || fail "\"$name\" is not up; run: $0 --name $name up"; }

port_of() { # One of ports
  local base i
  base=$(<"$dir/port")
  for i in "${!ports[@]}"; do
    [[ ${ports[i]} != "$1" ]] || { echo $((base + i)); return; }
  done
  fail "no port for $1"
}

block_is_free() { # BASE
  local port
  ! grep -qsx "$1" "$root"/*/port || return 1
  for port in $(seq "$1" $(($1 + ${#ports[@]} - 1))); do
    ! port_is_taken "$port" || return 1
  done
}

# Below the ports that outgoing connections get, so that nobody takes one while its server is stopped.
pick_ports() {
  local base
  (
    flock 8
    while base=$((20000 + RANDOM % 400 * 30)); ! block_is_free "$base"; do :; done
    echo "$base" >"$dir/port"
  ) 8<"$root"
}

# --- certificates

certificate() { # FILE SUBJECT EXTENSION [SIGNER]
  openssl req -x509 -config "$dir/pki/openssl.cnf" -days 3650 -nodes -newkey ec \
    -pkeyopt ec_paramgen_curve:P-256 -keyout "$dir/pki/$1.key" -out "$dir/pki/$1.crt" -subj "$2" \
    -addext "$3" ${4:+-CA "$dir/pki/$4.crt" -CAkey "$dir/pki/$4.key"} 2>>"$dir/pki/log" ||
    fail "openssl could not make the certificate $1; see $dir/pki/log"
}

make_certificates() {
  local pki=$dir/pki
  mkdir -p "$pki"
  printf '[req]\ndistinguished_name=name\n[name]\n' >"$pki/openssl.cnf"
  certificate ca /CN=sync-operator-tests basicConstraints=critical,CA:TRUE
  certificate apiserver /CN=kube-apiserver \
    subjectAltName=DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1 ca
  certificate admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth ca
  openssl ecparam -genkey -noout -name prime256v1 -out "$pki/service-account.key"
  openssl ec -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2>>"$pki/log"
}

make_kubeconfig() {
  local pki=$dir/pki
  cat >"$dir/kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: sync-operator-$name
contexts:
  - name: sync-operator-$name
    context: {cluster: sync-operator-$name, user: admin}
clusters:
  - name: sync-operator-$name
    cluster:
      server: https://127.0.0.1:$(port_of apiserver)
      certificate-authority-data: $(base64 -w0 <"$pki/ca.crt")
users:
  - name: admin
    user:
      client-certificate-data: $(base64 -w0 <"$pki/admin.crt")
      client-key-data: $(base64 -w0 <"$pki/admin.key")
END
}

prepare() {
  [[ ! -e $dir/prepared ]] || return 0
  [[ -e $dir/port || -z $(ls -A "$dir") ]] || fail "$dir holds something else"
  chmod 700 "$dir"
  pick_ports
  make_certificates
  make_kubeconfig
  mkdir -p "$dir"/{etcd,redis,mongodb} "${members[@]/#/$dir/}"
  chmod 700 "$dir/etcd"
  touch "$dir/prepared"
}

# --- processes

pid_of() { # COMPONENT; fails if it does not run
  local pid started
  [[ -e $dir/$1.pid ]] || return 1
  read -r pid started <"$dir/$1.pid"
  [[ $started && $(start_time "$pid") == "$started" ]] && echo "$pid"
}

runs() { pid_of "$1" >/dev/null; }

spawn() { # COMPONENT COMMAND...
  local component=$1 pid
  shift
  cd "$dir"
  setsid "$@" </dev/null >>"$dir/$component.log" 2>&1 8<&- 9<&- &
  pid=$!
  disown "$pid" # or bash reports its end
  echo "$pid $(start_time "$pid")" >"$dir/$component.pid"
}

write_proxies() {
  local of proxy separator='['
  for of in "${members[@]/%/:-proxy}" apiserver:-{0..3} redis:-{0..3}; do
    proxy=${of/:/}
    printf '%s{"name": "%s", "listen": "127.0.0.1:%s", "upstream": "127.0.0.1:%s", "enabled": true}\n' \
      "$separator" "${proxy%-proxy}" "$(port_of "$proxy")" "$(port_of "${of%:*}")"
    separator=,
  done >"$dir/proxies.json"
  echo ']' >>"$dir/proxies.json"
}

launch() { # COMPONENT
  local port pki=$dir/pki
  port=$(port_of "$1")
  case $1 in
    etcd)
      local client=http://127.0.0.1:$port peer
      peer=http://127.0.0.1:$(port_of etcd-peer)
      # The short election timeout is what a lone member waits before it serves.
      spawn etcd "$programs/etcd" --data-dir="$dir/etcd" --unsafe-no-fsync --log-level=warn \
        --heartbeat-interval=20 --election-timeout=200 \
        --listen-client-urls="$client" --advertise-client-urls="$client" --listen-peer-urls="$peer" \
        --initial-advertise-peer-urls="$peer" --initial-cluster="default=$peer"
      ;;
    apiserver)
      # No endpoint reconciler: it refuses to publish a loopback address.
      spawn apiserver "$programs/kube-apiserver" --etcd-servers="http://127.0.0.1:$(port_of etcd)" \
        --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$port" \
        --endpoint-reconciler-type=none --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=RBAC \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --client-ca-file="$pki/ca.crt" --service-account-issuer=https://kubernetes.default.svc \
        --service-account-signing-key-file="$pki/service-account.key" \
        --service-account-key-file="$pki/service-account.pub"
      ;;
    controller-manager)
      # Without nodes, only these controllers matter.
      spawn controller-manager "$programs/kube-controller-manager" --kubeconfig="$dir/kubeconfig" \
        --bind-address=127.0.0.1 --secure-port="$port" --leader-elect=false --kube-api-qps=200 --kube-api-burst=400 \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/service-account.key" \
        --controllers=namespace-controller,garbage-collector-controller,serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller,clusterrole-aggregation-controller
      ;;
    redis)
      spawn redis "$redis_server" --bind 127.0.0.1 --port "$port" --dir "$dir/redis" \
        --appendonly yes --save '' --maxmemory-policy noeviction
      ;;
    mongodb | mongodb[1-3])
      # By default a primary stays up for 15 s after SIGTERM, so that others may take over, and a checkpoint is made once
      # a minute: one that was killed has to do again all that came after it.
      # A worker that is killed in the middle of a transaction leaves it open, for a minute by default.
      spawn "$1" "$mongod" --bind_ip 127.0.0.1 --port "$port" --dbpath "$dir/$1" --replSet rs0 \
        --setParameter transactionLifetimeLimitSeconds=10 \
        --syncdelay 2 --wiredTigerCacheSizeGB 0.5 --nounixsocket --setParameter diagnosticDataCollectionEnabled=false \
        --setParameter shutdownTimeoutMillisForSignaledShutdown=100
      ;;
    toxiproxy)
      write_proxies
      spawn toxiproxy "$toxiproxy" -host 127.0.0.1 -port "$port" -config "$dir/proxies.json"
      ;;
  esac
}

get() { curl -sf --noproxy '*' --max-time 5 -o /dev/null "$@"; }

get_kube() { # PATH
  get --cacert "$dir/pki/ca.crt" --cert "$dir/pki/admin.crt" --key "$dir/pki/admin.key" \
    "https://127.0.0.1:$(port_of apiserver)$1"
}

is_ready() { # COMPONENT
  local port
  port=$(port_of "$1")
  case $1 in
    etcd) get "http://127.0.0.1:$port/health" ;;
    apiserver) get_kube /readyz ;;
    controller-manager)
      get --cacert "$dir/pki/ca.crt" "https://127.0.0.1:$port/healthz" &&
        get_kube /api/v1/namespaces/default/serviceaccounts/default
      ;;
    redis) [[ $(redis-cli -p "$port" ping 2>/dev/null) == PONG ]] ;;
    mongodb) python3 "$here/replica_set.py" "$port" 2>/dev/null ;;
    # Members know each other by their proxies, because that is where clients look for them too.
    mongodb[1-3])
      python3 "$here/replica_set.py" "$port" "$(port_of mongodb1-proxy)" "$(port_of mongodb2-proxy)" \
        "$(port_of mongodb3-proxy)" 2>/dev/null
      ;;
    toxiproxy) get "http://127.0.0.1:$port/version" ;;
  esac
}

wait_ready() { # COMPONENT
  local end=$((SECONDS + ready_limit))
  until is_ready "$1"; do
    runs "$1" || fail_component "$1" "ended"
    ((SECONDS < end)) || fail_component "$1" "is not ready after $ready_limit s"
    sleep 0.05
  done
}

# The threads of a killed process may keep its port for a moment after it counts as ended.
wait_port() { # COMPONENT
  local port end=$((SECONDS + 5))
  port=$(port_of "$1")
  while port_is_taken "$port"; do
    ((SECONDS < end)) || fail "$1 of \"$name\": port $port was taken by another program"
    sleep 0.05
  done
}

run() { # COMPONENT
  runs "$1" && return
  wait_port "$1"
  launch "$1"
}

await() { # COMPONENT
  wait_ready "$1"
  # It takes the API server a moment to find etcd again.
  if [[ $1 == etcd ]] && runs apiserver; then wait_ready apiserver; fi
}

start() { # COMPONENT...
  local component
  for component; do
    run "$component"
    await "$component"
  done
}

# Without the lock while it waits: a member of the replica set is ready only when others run too, and those may be
# started by another call of this script.
start_in_turn() { # COMPONENT...
  local component
  for component; do
    lock
    run "$component"
    flock -u 9
    await "$component"
  done
}

start_kube() {
  start etcd apiserver
  [[ ! -x $programs/kube-controller-manager ]] || start controller-manager
}

# Only once all of them run can one of them ask the others to join.
start_members() {
  local member
  start toxiproxy
  for member in "${members[@]}"; do
    if ! runs "$member"; then launch "$member"; fi
  done
  start "${members[@]}"
}

signal() { # SIGNAL COMPONENT...
  local component pid signal=$1
  shift
  for component; do
    if pid=$(pid_of "$component"); then kill -s "$signal" "$pid" 2>/dev/null || true; fi
  done
}

wait_ended() { # SECONDS COMPONENT...
  local component end=$((SECONDS + $1))
  shift
  for component; do
    while runs "$component"; do
      ((SECONDS < end)) || return 1
      sleep 0.05
    done
  done
}

kill_now() { # COMPONENT...
  signal KILL "$@"
  wait_ended 10 "$@" || fail "could not end $*"
}

# --- commands

up() {
  local part job install=() jobs=() failed=0
  (($#)) || set -- kube redis mongodb
  for part; do
    [[ $part == @(kube|redis|mongodb|mongodb3) ]] || fail "up: kube, redis, mongodb or mongodb3, not $part"
    [[ $part == kube && $programs != "$control_plane" ]] || install+=("$part")
  done
  ((${#install[@]} == 0)) || "$here/install.sh" "${install[@]}"
  lock
  prepare
  [[ $programs == "$control_plane" ]] || echo "$programs" >"$dir/control-plane"
  for part; do
    case $part in
      kube) start_kube & ;;
      mongodb3) start_members & ;;
      *) start "$part" & ;;
    esac
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || failed=1
  done
  return $failed
}

down() {
  [[ -d $dir ]] || return 0
  [[ -e $dir/port || -z $(ls -A "$dir") ]] || fail "$dir was not made by me; it stays as it is"
  lock
  # The data goes too, so there is nothing to end gracefully for.
  kill_now "${components[@]}"
  rm -rf "$dir"
  rmdir --ignore-fail-on-non-empty "$root"
}

stop() {
  signal TERM "$@"
  wait_ended 10 "$@" || kill_now "$@"
}

status() {
  local component pid state address result=1 down=0
  for component in "${components[@]}"; do
    pid=- state='not started' address=-
    if [[ -e $dir/$component.pid ]]; then
      result=0 address=127.0.0.1:$(port_of "$component")
      if pid=$(pid_of "$component"); then
        state=running
      else
        pid=- state=stopped down=1
      fi
    fi
    printf '%-18s  %-11s  %-7s  %s\n' "$component" "$state" "$pid" "$address"
  done
  return $((result | down))
}

print_env() {
  local member hosts
  hosts=127.0.0.1:$(port_of mongodb)
  if [[ -e $dir/mongodb1.pid ]]; then
    hosts=
    for member in "${members[@]}"; do hosts+=${hosts:+,}127.0.0.1:$(port_of "$member-proxy"); done
  fi
  printf 'export %s\n' "KUBECONFIG=$(printf %q "$dir/kubeconfig")" \
    "KUBECACHEDIR=$(printf %q "$dir/kubectl-cache")" \
    "REDIS_URL=redis://127.0.0.1:$(port_of redis)" \
    "REDIS_SERVER=$redis_server" "MONGOD=$mongod" "PROMETHEUS=$prometheus" \
    "MONGODB_URI=mongodb://$hosts/?replicaSet=rs0" \
    "TOXIPROXY_URL=http://127.0.0.1:$(port_of toxiproxy)" \
    "PATH=$(printf %q "$programs"):\$PATH"
}

check_components() {
  local component
  (($#)) || fail "which component? One or more of: ${components[*]}"
  for component; do
    [[ " ${components[*]} " == *" $component "* ]] || fail "no component $component; there are: ${components[*]}"
  done
}

if [[ ${1-} == --name ]]; then
  name=${2-}
  shift $(($# < 2 ? $# : 2))
fi
[[ $name =~ ^[a-z0-9][a-z0-9-]*$ ]] || fail "a NAME is of a-z, 0-9 and -, not \"$name\""
dir=$root/$name
programs=$(realpath -m -- "${CONTROL_PLANE:-$control_plane}")
[[ ! -e $dir/control-plane ]] || programs=$(<"$dir/control-plane")
command=${1-}
(($#)) && shift

case $command in
  up | down) "$command" "$@" ;;
  status) status ;;
  start)
    check_components "$@"
    need_state
    start_in_turn "$@"
    ;;
  stop | kill)
    check_components "$@"
    need_state
    lock
    if [[ $command == kill ]]; then kill_now "$@"; else stop "$@"; fi
    ;;
  env) need_state && print_env ;;
  kubeconfig) need_state && echo "$dir/kubeconfig" ;;
  kubectl)
    need_state
    # Its cache is by address, and another cluster may have had this one.
    KUBECACHEDIR=$dir/kubectl-cache exec "$programs/kubectl" --kubeconfig="$dir/kubeconfig" "$@"
    ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
