#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cadre doctor: what it prints of this machine, and provoked troubles, each with the line that repairs it. Usage:
# doctor_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

unset SLURM_NTASKS SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK
unset OMP_NUM_THREADS

# finds TROUBLE MEND: the line, and the one under it.
finds() { grep -F -A1 "TROUBLE" "$output" | grep -F -A1 -- "$1" | grep -qF -- "$2" || fail "no trouble '$1' with '$2'"; }
does_not_find() { if grep -qF -- "$1" "$output"; then fail "finds '$1'"; fi; }

alone doctor
succeeded doctor
says "cadre " "products" "thread level" "ucx" "launcher  none, ranks 1" "$(hostname)" "on cpus" "/dev/shm" "GPUs" "progress"
does_not_find OMP_NUM_THREADS
does_not_find "a Slurm job"

on_two_ranks doctor
succeeded doctor
says "ranks 2" "local ranks 2"
does_not_find OMP_NUM_THREADS
# A latency above 0 and below a second, a bandwidth above 0; in one process ranks are threads.
grep -Eq '^  link      rank 0 on .* - rank 1 on .*: latency 0*[1-9][0-9]{0,5}\.[0-9] us, bandwidth [0-9]+\.[0-9]+ GB/s$|latency 0\.[1-9] us' "$output" ||
  fail "no latency and bandwidth"
if ((${#launcher[@]} > 0)); then says "network   pml "; fi
on_two_ranks doctor --links 0
does_not_find "latency"
on_two_ranks doctor --threads 512
finds "< ranks 2 x threads 512" "compute.threads"
SLURM_NTASKS=4 SLURM_CPUS_PER_TASK=2 alone doctor
finds "this is one process in a Slurm job of 4 tasks" "srun --mpi=pmix"
finds "does not inherit --cpus-per-task" "export SRUN_CPUS_PER_TASK"
says "troubles found: "

if ((${#launcher[@]} > 0 && $(nproc) > 1)); then
  launcher+=(taskset --cpu-list "$(taskset --cpu-list --pid $$ | grep -o '[0-9]*$')")
  on_two_ranks doctor
  succeeded "doctor on one cpu"
  finds "several ranks are bound to the same cpu" "--bind-to core"
fi
