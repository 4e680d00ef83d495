#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a rank says that dies of a mistake, and that the job ends with it. Usage: crash_test.sh CRASH_VICTIM MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

# dies CAUSE CODE...: of it, on rank 1 of two, and the job ends with one of the codes and the stack.
dies() {
  code=0
  timeout 60 "${launcher[@]}" "$program" "$1" >"$output" 2>&1 || code=$?
  local expected
  for expected in "${@:2}"; do ((code != expected)) || break; done
  ((code == expected)) || fail "$1: exit code $code, not ${*:2}"
  says "cadre: error: rank 1 on $(hostname): " " 0# "
}

dies terminate 70
says "nobody catches this" "die_of"
# Either mpirun sees the signal first or rank 0 the death.
dies segv 139 6
says "signal 11 (Segmentation fault): step 7, experts" "Job::on_ranks"
dies mpi 3
says "MPI_Isend" "failed: MPI_ERR_TAG" "Job::on_ranks"
