# shellcheck shell=bash
# What cluster.sh, kind.sh and demo.sh need to know of processes and ports.

# A pid alone may be another process by now: the start time tells. Fails for one that has ended.
start_time() { # PID
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -ra stat <<<"${stat##*) }"
  [[ ${stat[0]} != [ZX] ]] && echo "${stat[19]}"
}

await_end() { # PID SECONDS
  local end=$((SECONDS + $2))
  while start_time "$1" >/dev/null; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

port_is_taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
