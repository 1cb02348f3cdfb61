#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/process.sh"

usage() {
  cat <<'END'
cluster.sh [--name NAME] COMMAND: manages test servers on 127.0.0.1: a Kubernetes control plane without nodes, a Redis
server and a MongoDB replica set with one member. Each NAME (default: dev) has its own servers.

  up [kube] [redis] [mongodb]  start the servers (default: all three) that are not running, and wait until they are ready
     CONTROL_PLANE=FOLDER      uses etcd, kube-apiserver and kubectl of FOLDER, such as the folder of envtest, and does not
                               build them; without a kube-controller-manager in it, there is no garbage collection
     [mongodb3]                instead of mongodb: a replica set of three members, and toxiproxy with a
                               proxy for each member, and four proxies each for the API server and Redis
  down                         stop all servers of this NAME and delete their data
  stop COMPONENT...            stop with SIGTERM, and with SIGKILL after 10 s; data and port stay.
                               A graceful stop takes 5 s for etcd and nearly 10 s for the API server
  kill COMPONENT...            stop with SIGKILL; data and port stay
  start COMPONENT...           start again and wait until ready
  status                       print the state of each component; exit code 0 if all started components are running
  env                          print variables for eval: KUBECONFIG, REDIS_URL, MONGODB_URI, PATH with kubectl, and
                               TOXIPROXY_URL, which lists the proxies under /proxies
  kubeconfig                   print the path of an administrator's kubeconfig
  kubectl ARGUMENT...          run kubectl with the control plane

COMPONENT: etcd apiserver controller-manager redis mongodb mongodb1 mongodb2 mongodb3 toxiproxy
Data and logs: ${SYNC_OPERATOR_STATE:-/tmp/sync-operator-$UID}/NAME
END
}

members=(mongodb1 mongodb2 mongodb3)
components=(etcd apiserver controller-manager redis mongodb "${members[@]}" toxiproxy)
# Ports of a NAME, in the order of their offsets.
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
    # Lines of mongod's log above the level I (information).
    grep -v '"s":"I"' "$log" | tail -n 15 | cut -c -400 || true
  } >&2
  exit 1
}

# --- state folder, lock and ports

# The lock is on the folder itself, because a lock file would remain after `down`.
lock() {
  while true; do
    mkdir -p "$dir"
    exec 9<"$dir"
    flock 9
    [[ /dev/fd/9 -ef $dir ]] && return # otherwise `down` removed the folder in the meantime
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

# Below the ephemeral ports, so that no outgoing connection takes a port while its server is stopped.
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
  [[ -e $dir/port || -z $(ls -A "$dir") ]] || fail "$dir contains other files"
  chmod 700 "$dir"
  pick_ports
  make_certificates
  make_kubeconfig
  mkdir -p "$dir"/{etcd,redis,mongodb} "${members[@]/#/$dir/}"
  chmod 700 "$dir/etcd"
  touch "$dir/prepared"
}

# --- processes

pid_of() { # COMPONENT: fails if it is not running
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
  disown "$pid" # otherwise bash reports its end
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
      # A lone member waits for the election timeout before it serves.
      spawn etcd "$programs/etcd" --data-dir="$dir/etcd" --unsafe-no-fsync --log-level=warn \
        --heartbeat-interval=20 --election-timeout=200 \
        --listen-client-urls="$client" --advertise-client-urls="$client" --listen-peer-urls="$peer" \
        --initial-advertise-peer-urls="$peer" --initial-cluster="default=$peer"
      ;;
    apiserver)
      # No endpoint reconciler, because it does not publish a loopback address.
      spawn apiserver "$programs/kube-apiserver" --etcd-servers="http://127.0.0.1:$(port_of etcd)" \
        --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$port" \
        --endpoint-reconciler-type=none --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=RBAC \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --client-ca-file="$pki/ca.crt" --service-account-issuer=https://kubernetes.default.svc \
        --service-account-signing-key-file="$pki/service-account.key" \
        --service-account-key-file="$pki/service-account.pub"
      ;;
    controller-manager)
      # The other controllers have no effect without nodes.
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
      # The defaults slow the tests down: a primary runs for 15 s after SIGTERM, to allow a failover. MongoDB writes a
      # checkpoint once per minute, and a killed member repeats all later writes. A transaction of a killed worker stays open
      # for a minute.
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
    # Members use the addresses of the proxies, because drivers connect to the addresses in the replica set configuration.
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

# The threads of a killed process may keep its port for a short time after its end.
wait_port() { # COMPONENT
  local port end=$((SECONDS + 5))
  port=$(port_of "$1")
  while port_is_taken "$port"; do
    ((SECONDS < end)) || fail "$1 of \"$name\": port $port is in use by another program"
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
  # The API server needs a short time to reconnect to etcd.
  if [[ $1 == etcd ]] && runs apiserver; then wait_ready apiserver; fi
}

start() { # COMPONENT...
  local component
  for component; do
    run "$component"
    await "$component"
  done
}

# Releases the lock while it waits. A member of the replica set is ready only when other members are running, and another call
# of this script may start them.
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

# Initiating the replica set needs all members.
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
  wait_ended 10 "$@" || fail "could not stop $*"
}

# --- commands

up() {
  local part job install=() jobs=() failed=0
  (($#)) || set -- kube redis mongodb
  for part; do
    [[ $part == @(kube|redis|mongodb|mongodb3) ]] || fail "up: unknown part $part; the parts are kube, redis, mongodb and mongodb3"
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
  [[ -e $dir/port || -z $(ls -A "$dir") ]] || fail "cluster.sh did not create $dir, so it does not delete it"
  lock
  # The data is deleted, so a graceful stop is not necessary.
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
  (($#)) || fail "a component is required; the components are: ${components[*]}"
  for component; do
    [[ " ${components[*]} " == *" $component "* ]] || fail "unknown component $component; the components are: ${components[*]}"
  done
}

if [[ ${1-} == --name ]]; then
  name=${2-}
  shift $(($# < 2 ? $# : 2))
fi
[[ $name =~ ^[a-z0-9][a-z0-9-]*$ ]] || fail "invalid NAME \"$name\": it may contain a-z, 0-9 and -"
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
    # The cache of kubectl is by address, and another cluster may have used this address.
    KUBECACHEDIR=$dir/kubectl-cache exec "$programs/kubectl" --kubeconfig="$dir/kubeconfig" "$@"
    ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
