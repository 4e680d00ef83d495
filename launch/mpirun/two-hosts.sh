#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Several machines over TCP, without a batch system. They need ssh without a password between them, the same Open MPI,
# and this folder and the data at the same path. Usage: launch/mpirun/two-hosts.sh HOSTFILE RUN.toml [key=value ...]
# HOSTFILE has one line a machine with the number of ranks it takes:
#   node0 slots=4
#   node1 slots=4
# CADRE_NETWORK=SUBNET   the subnet to talk over, e.g. 10.0.0.0/24. Set it where a machine has several (containers and
#                        VPNs count): Open MPI would otherwise try them all, and wait where there is no way through.
# CADRE_THREADS=N        threads a rank may use (default 1); slots x threads should not exceed the cores of a machine
set -euo pipefail

folder=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/program.sh
source "$folder/../program.sh"
need_arguments 2 "$@"
cadre=$(find_cadre "$folder") || exit
# shellcheck source=launch/hosts.sh
source "$folder/../hosts.sh"
hostfile=$1
check_hostfile "$hostfile" || exit
shift
threads=${CADRE_THREADS:-1}

network=()
if [[ -n "${CADRE_NETWORK:-}" ]]; then
  network=(--mca btl_tcp_if_include "$CADRE_NETWORK" --mca oob_tcp_if_include "$CADRE_NETWORK")
fi
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# Without -n mpirun fills every slot. ob1 over tcp is what runs on any network.
exec mpirun --hostfile "$hostfile" --map-by "slot:PE=$threads" --bind-to core \
  --mca pml ob1 --mca btl self,vader,tcp "${network[@]}" \
  -x OMP_NUM_THREADS="$threads" -x OPENBLAS_NUM_THREADS="$threads" \
  "$cadre" train "$1" compute.threads="$threads" "${@:2}"
