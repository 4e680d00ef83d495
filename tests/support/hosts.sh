#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program under Open MPI on several hosts that are namespaces of this machine. Ranks of one host share its name,
# its memory and its address; ranks of different hosts have TCP and nothing else.
# Usage: hosts.sh HOSTS RANKS_PER_HOST [--rate RATE] -- PROGRAM [ARGUMENT...]
#   --rate RATE  what each host can send and receive, e.g. 2gbit (as tc writes it); without it, no limit
# MPIEXEC names mpirun; OMPI_MCA_pml=ucx has it use UCX. Exit code: the program's, or 77 with one line of reason where
# such hosts cannot be made.
# What this makes lies in namespaces of its own: nothing clashes with another run, and the kernel takes it away with the
# last process, which dies with this script however the script ends.
set -euo pipefail

usage="usage: hosts.sh HOSTS RANKS_PER_HOST [--rate RATE] -- PROGRAM [ARGUMENT...]"
mpiexec=${MPIEXEC:-mpirun}
subnet=10.77.0

skip() {
  echo "hosts.sh: skipped: $1"
  exit 77
}

# need COMMAND...: a step without which there are no hosts.
need() {
  local output
  output=$("$@" 2>&1) || skip "'$*' failed: $(tail -n 1 <<<"$output")"
}

# make_host I RATE: host I, its address <subnet>.<I + 1>, a port of the switch, and $folder/<address> with the process
# that keeps its namespaces. /dev/shm is its own, so that ranks of two hosts cannot share memory; UCX looks at /sys.
make_host() {
  local address=$subnet.$(($1 + 1)) ready pid
  # shellcheck disable=SC2016  # the shell of the host expands it
  exec {ready}< <(exec unshare --net --uts --mount bash -c '
    hostname "$0" && ip link set lo up && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /dev/shm && echo $$ &&
      exec sleep infinity' "host$1" 2>"$folder/error")
  read -r pid <&"$ready" || skip "no host can be made: $(tail -n 1 "$folder/error")"
  echo "$pid" >"$folder/$address"
  need ip link add "port$1" type veth peer name eth0 netns "$pid"
  need ip link set "port$1" master switch up
  need nsenter --target "$pid" --net ip address add "$address/24" dev eth0
  need nsenter --target "$pid" --net ip link set eth0 up
  if [[ -n "$2" ]]; then
    local limit=(root tbf rate "$2" burst 1mb latency 50ms)
    need tc qdisc add dev "port$1" "${limit[@]}"
    need nsenter --target "$pid" --net tc qdisc add dev eth0 "${limit[@]}"
  fi
}

# run_inside FOLDER HOSTS RANKS_PER_HOST RATE PROGRAM...: the first process of the new namespaces. Makes a switch, the
# hosts, and an agent that stands in for ssh; then lets mpirun do what it does between machines.
run_inside() {
  local folder=$1 num_hosts=$2 ranks=$3 rate=$4 hosts="" i
  need mount -t tmpfs tmpfs "$folder"
  need ip link set lo up
  need ip link add switch type bridge
  need ip address add "$subnet.254/24" dev switch
  need ip link set switch up
  for ((i = 0; i < num_hosts; ++i)); do
    make_host "$i" "$rate"
    hosts+="${hosts:+,}$subnet.$((i + 1)):$ranks"
  done
  cat >"$folder/agent" <<END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
pid=\$(cat "$folder/\$1") && shift && exec nsenter --target "\$pid" --net --uts --mount sh -c "\$*"
END
  chmod +x "$folder/agent"
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  "$mpiexec" --bind-to none --host "$hosts" -np $((num_hosts * ranks)) \
    --mca plm rsh --mca plm_rsh_agent "$folder/agent" --mca routed direct --mca oob_tcp_if_include "$subnet.0/24" \
    --mca pml "${OMPI_MCA_pml:-ob1}" --mca btl self,vader,tcp --mca btl_tcp_if_include "$subnet.0/24" \
    --mca orte_tmpdir_base "$folder" \
    "${@:5}"
}

if [[ "${1:-}" == --inside ]]; then
  run_inside "${@:2}"
  exit
fi

rate=""
arguments=("$@")
if [[ "${3:-}" == --rate ]]; then
  rate=${4:-}
  arguments=("${@:1:2}" "${@:5}")
fi
if ((${#arguments[@]} < 4)) || [[ ! "${arguments[*]:0:3}" =~ ^[1-9][0-9]?\ [1-9][0-9]?\ --$ ]]; then
  echo "$usage" >&2
  exit 2
fi

for tool in ip tc unshare nsenter setpriv "$mpiexec"; do
  command -v "$tool" >/dev/null || skip "there is no command $tool"
done
[[ "$("$mpiexec" --version 2>&1)" == *"(Open"@(" MPI"|RTE)")"* ]] || skip "$mpiexec is not that of Open MPI"

# Whoever is not root becomes root of a user namespace, where the kernel lets them.
namespaces=(setpriv --pdeathsig KILL -- unshare --net --mount --pid --fork --kill-child --mount-proc)
if ((EUID != 0)); then namespaces+=(--user --map-root-user); fi
need "${namespaces[@]}" true
folder=$(mktemp -d)  # where the file system of this run is mounted: nobody but its own processes sees anything in it
trap 'rmdir "$folder"' EXIT
"${namespaces[@]}" bash "$0" --inside "$folder" "${arguments[@]:0:2}" "$rate" "${arguments[@]:3}"
