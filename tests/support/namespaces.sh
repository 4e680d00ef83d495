# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Hosts that are namespaces of this machine. Sourced; the script that does so sets `subnet`, e.g. 10.77.0, calls
# in_namespaces to be run again inside, as `SCRIPT --inside FOLDER ...`, and there make_switch and make_host.
: "${subnet:?}"

skip() {
  echo "$(basename "$0"): skipped: $1"
  exit 77
}

# need COMMAND...: a step without which there are no hosts.
need() {
  local output
  output=$("$@" 2>&1) || skip "'$*' failed: $(tail -n 1 <<<"$output")"
}

need_commands() {
  local tool
  for tool in "$@"; do command -v "$tool" >/dev/null || skip "there is no command $tool"; done
}

# make_switch: a network that the hosts and this shell, as <subnet>.254, are on.
make_switch() {
  need ip link set lo up
  need ip link add switch type bridge
  need ip address add "$subnet.254/24" dev switch
  need ip link set switch up
}

# make_host FOLDER I NAME [SIZE]: host I, its address <subnet>.<I + 1>, a port of the switch, and FOLDER/<address> with the
# process that keeps its namespaces. /dev/shm is its own, of SIZE (default: half of the memory), so that ranks of two hosts
# cannot share memory; UCX looks at /sys.
make_host() {
  local address=$subnet.$(($2 + 1)) ready pid
  # shellcheck disable=SC2016  # the shell of the host expands it
  exec {ready}< <(exec unshare --net --uts --mount bash -c '
    hostname "$0" && ip link set lo up && mount -t sysfs sysfs /sys && mount -t tmpfs -o "size=$1" tmpfs /dev/shm &&
      echo $$ && exec sleep infinity' "$3" "${4:-50%}" 2>"$1/error")
  read -r pid <&"$ready" || skip "no host can be made: $(tail -n 1 "$1/error")"
  echo "$pid" >"$1/$address"
  need ip link add "port$2" type veth peer name eth0 netns "$pid"
  need ip link set "port$2" master switch up
  need nsenter --target "$pid" --net ip address add "$address/24" dev eth0
  need nsenter --target "$pid" --net ip link set eth0 up
}

# in_namespaces SCRIPT ARGUMENT...: runs `SCRIPT --inside FOLDER ARGUMENT...`, where FOLDER is empty and to be mounted on:
# nobody but its own processes sees anything in it. Whoever is not root becomes root of a user namespace, where the kernel
# lets them.
in_namespaces() {
  local namespaces=(setpriv --pdeathsig KILL -- unshare --net --uts --mount --pid --fork --kill-child --mount-proc)
  if ((EUID != 0)); then namespaces+=(--user --map-root-user); fi
  need "${namespaces[@]}" true
  folder=$(mktemp -d)
  trap 'rmdir "$folder"' EXIT
  "${namespaces[@]}" bash "$1" --inside "$folder" "${@:2}"
}
