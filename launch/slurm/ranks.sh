# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# `cadre` on all ranks of a Slurm job, sourced by the sbatch scripts with $scripts, the folder of this file. Relative paths
# are those of the folder that sbatch was called in.
: "${scripts:?the script that sources this sets it}"
cd "$SLURM_SUBMIT_DIR" || exit 3
# shellcheck source=launch/program.sh
source "$scripts/../program.sh"
# shellcheck source=launch/slurm/env.sh
source "${CADRE_ENV:-$scripts/env.sh}"
CADRE=$(find_cadre "$scripts") || exit
export CADRE

# Ranks of a node and threads of a rank: those of the job (--ntasks-per-node, --cpus-per-task), else of its cpus: a rank for
# every 8, the rest of the division as threads.
cpus=${SLURM_CPUS_ON_NODE:-1}
ranks_per_node=${SLURM_NTASKS_PER_NODE:-}
if [[ -z "$ranks_per_node" ]]; then
  if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
    ranks_per_node=$((cpus / SLURM_CPUS_PER_TASK))
  else
    ranks_per_node=$(((cpus + 7) / 8))
  fi
  ranks_per_node=$((ranks_per_node > 1 ? ranks_per_node : 1))
fi
threads=${SLURM_CPUS_PER_TASK:-$((cpus / ranks_per_node > 1 ? cpus / ranks_per_node : 1))}
# srun takes --cpus-per-task from here since Slurm 22.05, not from the allocation.
export SRUN_CPUS_PER_TASK=$threads OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads OMP_PLACES=cores

# shellcheck disable=SC2034  # for the script that sources this
job_ended=0  # 1 once Slurm ends the job: cancelled, preempted, out of time

# run_on_ranks WORD...: `cadre WORD...` with srun or mpirun; returns its exit code. SIGUSR1, which asks the ranks to save and
# stop, reaches them all alike through the launcher: sent to the steps of the job instead, it would miss those ranks that
# mpirun starts on this very node. The launcher runs in the background because a shell answers signals only while it waits.
run_on_ranks() {
  local command=("${CONTAINER[@]}" "$CADRE" "$@") options code pid signalled
  case "$LAUNCHER" in
    srun)
      read -ra options <<<"$SRUN_OPTIONS"
      # Without the next two a rank that dies alone on its node leaves the others waiting until the time limit.
      srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * ranks_per_node))" \
        --ntasks-per-node="$ranks_per_node" "${options[@]}" --kill-on-bad-exit=1 --wait=60 --unbuffered "${command[@]}" &
      ;;
    mpirun)
      read -ra options <<<"$MPIRUN_OPTIONS"
      # Inside an allocation mpirun takes hosts and slots from Slurm.
      if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
      mpirun --map-by "ppr:$ranks_per_node:node:PE=$threads" "${options[@]}" \
        -x OMP_NUM_THREADS -x OPENBLAS_NUM_THREADS -x OMP_PLACES ${CADRE_EXIT_FILE:+-x CADRE_EXIT_FILE} \
        "${command[@]}" &
      ;;
    *)
      echo "LAUNCHER=$LAUNCHER: srun or mpirun" >&2
      return 2
      ;;
  esac
  pid=$!
  # Slurm sends SIGTERM to ranks and launcher by itself; this shell only has to outlive them. srun then leaves the ranks
  # until KillWait; mpirun kills them after two seconds (and would, given more time, also wait longer when a rank dies).
  trap 'signalled=1; kill -USR1 "$pid"' USR1
  trap 'signalled=1; job_ended=1' TERM
  while
    signalled=0
    code=0
    wait "$pid" || code=$?
    ((signalled))  # then that was the code of the signal
  do :; done
  trap - USR1 TERM
  return "$code"
}
