#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program under Open MPI on several hosts that are namespaces of this machine. Ranks of one host share its name,
# its memory and its address; ranks of different hosts have TCP and nothing else.
# Usage: hosts.sh HOSTS RANKS_PER_HOST [--rate RATE] [--short-memory SIZE] -- PROGRAM [ARGUMENT...]
#   --rate RATE          what each host can send and receive, e.g. 2gbit (as tc writes it); without it, no limit
#   --short-memory SIZE  of /dev/shm of the last host, e.g. 16m (as mount writes it); without it, half of the memory
# MPIEXEC names mpirun; OMPI_MCA_pml=ucx has it use UCX. Exit code: the program's, or 77 with one line of reason where
# such hosts cannot be made.
# What this makes lies in namespaces of its own: nothing clashes with another run, and the kernel takes it away with the
# last process, which dies with this script however the script ends.
set -euo pipefail

usage="usage: hosts.sh HOSTS RANKS_PER_HOST [--rate RATE] [--short-memory SIZE] -- PROGRAM [ARGUMENT...]"
mpiexec=${MPIEXEC:-mpirun}
subnet=10.77.0

# shellcheck source=tests/support/namespaces.sh
source "$(dirname "${BASH_SOURCE[0]}")/namespaces.sh"

# limit_rate FOLDER I RATE: what host I can send, and what the switch sends it.
limit_rate() {
  local limit=(root tbf rate "$3" burst 1mb latency 50ms) pid
  pid=$(cat "$1/$subnet.$(($2 + 1))")
  need tc qdisc add dev "port$2" "${limit[@]}"
  need nsenter --target "$pid" --net tc qdisc add dev eth0 "${limit[@]}"
}

# run_inside FOLDER HOSTS RANKS_PER_HOST RATE SIZE PROGRAM...: the first process of the new namespaces. Makes a switch, the
# hosts, and an agent that stands in for ssh; then lets mpirun do what it does between machines.
run_inside() {
  local folder=$1 num_hosts=$2 ranks=$3 rate=$4 size=$5 hosts="" memory i
  need mount -t tmpfs tmpfs "$folder"
  make_switch
  for ((i = 0; i < num_hosts; ++i)); do
    memory=()
    if ((i == num_hosts - 1)) && [[ -n "$size" ]]; then memory=("$size"); fi
    make_host "$folder" "$i" "host$i" "${memory[@]}"
    if [[ -n "$rate" ]]; then limit_rate "$folder" "$i" "$rate"; fi
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
    "${@:6}"
}

if [[ "${1:-}" == --inside ]]; then
  run_inside "${@:2}"
  exit
fi

rate="" size=""
arguments=("$@")
while [[ "${arguments[2]:-}" == @(--rate|--short-memory) ]]; do
  if [[ "${arguments[2]}" == --rate ]]; then rate=${arguments[3]:-}; else size=${arguments[3]:-}; fi
  arguments=("${arguments[@]:0:2}" "${arguments[@]:4}")
done
if ((${#arguments[@]} < 4)) || [[ ! "${arguments[*]:0:3}" =~ ^[1-9][0-9]?\ [1-9][0-9]?\ --$ ]]; then
  echo "$usage" >&2
  exit 2
fi

need_commands ip tc unshare nsenter setpriv "$mpiexec"
[[ "$("$mpiexec" --version 2>&1)" == *"(Open"@(" MPI"|RTE)")"* ]] || skip "$mpiexec is not that of Open MPI"
in_namespaces "$0" "${arguments[@]:0:2}" "$rate" "$size" "${arguments[@]:3}"
