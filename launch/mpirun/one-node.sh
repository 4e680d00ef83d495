#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One machine, one rank for every few cores.
# Usage: launch/mpirun/one-node.sh RANKS RUN.toml [key=value ...]
set -euo pipefail

folder=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/program.sh
source "$folder/../program.sh"
need_arguments 2 "$@"
cadre=$(find_cadre "$folder") || exit
ranks=$1
shift
threads=$(($(nproc) / ranks))
threads=$((threads > 1 ? threads : 1))

# --map-by slot:PE=N gives each rank N cores of its own and binds it there; with fewer cores than ranks nothing can be
# bound, and ranks must yield while they wait.
if ((ranks <= $(nproc))); then
  placement=(--map-by "slot:PE=$threads" --bind-to core)
else
  placement=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
fi
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

exec mpirun -n "$ranks" "${placement[@]}" \
  -x OMP_NUM_THREADS="$threads" -x OPENBLAS_NUM_THREADS="$threads" \
  "$cadre" train "$1" compute.threads="$threads" "${@:2}"
