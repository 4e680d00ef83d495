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

# Without -n mpirun fills every slot. ob1 over tcp is what runs on any network.
options=(--mca pml ob1 --mca btl "self,vader,tcp")
if [[ -n "${CADRE_NETWORK:-}" ]]; then
  options+=(--mca btl_tcp_if_include "$CADRE_NETWORK" --mca oob_tcp_if_include "$CADRE_NETWORK")
fi
train_on_hosts "$cadre" "$@"
