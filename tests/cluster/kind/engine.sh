# shellcheck shell=bash disable=SC2154
# Docker engine for machines without one. kind.sh sources it after paths.sh and process.sh. All clusters of a cache folder share
# the engine. It has its own data, socket and addresses.

engine_state=$engine/state # files for stopping the engine, deleted afterwards

engine_pid() { # Fails if the engine is not running
  local pid started
  [[ -e $engine_state/pid ]] || return 1
  read -r pid started <"$engine_state/pid"
  [[ $started && $(start_time "$pid") == "$started" ]] && echo "$pid"
}

engine_docker() { docker --host "unix://$engine_socket" "$@"; }

lacks_resource_capability() {
  local set
  set=$(awk '/^CapBnd:/ {print $2}' /proc/self/status)
  (((0x$set >> 24 & 1) == 0))
}

write_engine_config() {
  local runtime=
  if lacks_resource_capability; then
    cp "$here/kind/runc-without-resource" "$engine_state/"
    runtime=', "runtimes": {"without-resource": {"path": "'$engine_state'/runc-without-resource"}},
 "default-runtime": "without-resource"'
  fi
  # No bridge, because kind creates a network. The addresses differ from Docker's default addresses.
  cat >"$engine_state/daemon.json" <<END2
{"data-root": "$engine/data", "exec-root": "$engine_state/exec", "pidfile": "$engine_state/docker.pid",
 "hosts": ["unix://$engine_socket"], "group": "root", "bridge": "none", "oom-score-adjust": 0,
 "default-address-pools": [{"base": "172.31.16.0/20", "size": 24}]$runtime}
END2
}

# Records the settings of the machine that dockerd changes and does not restore.
note_machine() {
  {
    echo "forwarding=$(</proc/sys/net/ipv4/ip_forward)"
    echo "policy=$(iptables -S FORWARD | awk '$1 == "-P" {print $3}')"
    [[ -e /lib/modules ]] || echo "no_modules=1"
  } >"$engine_state/machine.tmp"
  mv "$engine_state/machine.tmp" "$engine_state/machine"
}

other_engine_runs() {
  local pid
  while IFS=/ read -r _ _ pid _; do
    if start_time "$pid" >/dev/null; then return; fi
  done < <(grep -lsx dockerd /proc/[0-9]*/comm)
  return 1
}

remove_rules() { # TABLE: removes Docker's chains and the rules that refer to them
  local rule
  iptables -t "$1" -S | awk '$1 == "-A" && / -j DOCKER/ {sub("-A", "-D"); print}
    $1 == "-N" && $2 ~ /^DOCKER/ {print "-F", $2; last = last "-X " $2 "\n"}
    END {printf "%s", last}' |
    while read -ra rule; do iptables -t "$1" "${rule[@]}"; done
}

restore_machine() {
  local forwarding='' policy='' no_modules=''
  # shellcheck disable=SC1091
  source "$engine_state/machine"
  [[ ! $no_modules ]] || rmdir --ignore-fail-on-non-empty /lib/modules 2>/dev/null || true
  rmdir /sys/fs/cgroup/docker /sys/fs/cgroup/*/docker 2>/dev/null || true
  if other_engine_runs; then return; fi
  rmdir /run/docker/plugins /run/docker /run/containerd/s /run/containerd 2>/dev/null || true
  remove_rules nat
  remove_rules filter
  iptables -P FORWARD "$policy"
  echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
}

# Removes containers of dead clusters, which an engine leaves after a crash.
start_engine() {
  local end=$((SECONDS + 60)) pid
  if engine_pid >/dev/null; then return; fi
  ((EUID == 0)) || fail "not root, and no Docker engine answers: start one, or set DOCKER_HOST"
  mkdir -p "$engine_state"
  [[ -e $engine_state/machine ]] || note_machine
  write_engine_config
  rm -f "$engine_state/docker.pid"
  setsid dockerd --config-file "$engine_state/daemon.json" </dev/null >>"$engine_state/log" 2>&1 7<&- 8<&- 9<&- &
  pid=$!
  disown "$pid"
  echo "$pid $(start_time "$pid")" >"$engine_state/pid"
  until engine_docker version >/dev/null 2>&1; do
    engine_pid >/dev/null || fail_engine "ended"
    ((SECONDS < end)) || fail_engine "does not answer after 60 s"
    sleep 0.1
  done
  remove_containers
}

fail_engine() { # WHAT
  tail -n 15 "$engine_state/log" >&2
  fail "dockerd $1; above is the end of $engine_state/log. Try again after: $0 --name $name down"
}

remove_containers() {
  local containers
  mapfile -t containers < <(engine_docker ps -aq)
  ((${#containers[@]} == 0)) || engine_docker rm -fv "${containers[@]}" >/dev/null
  engine_docker network prune -f >/dev/null
  engine_docker volume prune -f >/dev/null
}

stop_engine() {
  local pid containerd mount
  [[ -e $engine_state ]] || return 0
  # Only a running engine can remove the processes and mounts of a killed one.
  start_engine
  remove_containers
  pid=$(engine_pid)
  containerd=$(cat "$engine_state/exec/containerd/containerd.pid" 2>/dev/null || true)
  kill "$pid"
  await_end "$pid" 20 || kill -9 "$pid"
  if [[ $containerd && $(readlink "/proc/$containerd/exe") == */containerd ]]; then
    await_end "$containerd" 10 || kill -9 "$containerd" || true
  fi
  awk -v at="$engine/" 'index($5, at) == 1 {print $5}' /proc/self/mountinfo | sort -r |
    while read -r mount; do umount -l "$mount"; done
  restore_machine
  rm -rf --one-file-system "$engine_state"
  rm -f "$engine_socket"
}
