# shellcheck shell=bash
# Functions for processes and ports, for cluster.sh, kind.sh and demo.sh.

# Prints the start time of a process, which identifies it after a reuse of its PID. Fails if the process has ended.
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
