# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# `cadre` on all ranks of a Slurm job, sourced by the sbatch scripts from the root of the repository.
source launch/slurm/env.sh

# shellcheck disable=SC2034  # for the script that sources this
job_ended=0  # 1 once Slurm ends the job: cancelled, preempted, out of time

# run_on_ranks WORD...: `cadre WORD...` with srun or mpirun; returns its exit code. SIGUSR1, which asks the ranks to save and
# stop, reaches them all alike through the launcher: sent to the steps of the job instead, it would miss those ranks that
# mpirun starts on this very node. The launcher runs in the background because a shell answers signals only while it waits.
run_on_ranks() {
  local command=("${CADRE:-build/release/cadre}" "$@") options code pid signalled
  case "$LAUNCHER" in
    srun)
      read -ra options <<<"$SRUN_OPTIONS"
      # Without the next two a rank that dies alone on its node leaves the others waiting until the time limit.
      srun "${options[@]}" --kill-on-bad-exit=1 --wait=60 --unbuffered "${command[@]}" &
      ;;
    mpirun)
      read -ra options <<<"$MPIRUN_OPTIONS"
      # Inside an allocation mpirun takes hosts and slots from Slurm.
      if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
      mpirun --map-by "ppr:${SLURM_NTASKS_PER_NODE:-1}:node:PE=$SRUN_CPUS_PER_TASK" "${options[@]}" \
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
