#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Kills rank 1 of 3 before each reduction of a step in turn: the others end well before the deadline and name it.
# Usage: killed_rank_test.sh RUNTIME_TESTS MPIRUN [FLAG...]
set -euo pipefail
program=$1 launcher=("${@:2}")
output=$(mktemp)
trap 'rm -f "$output"' EXIT

fail() {
  sed 's/^/    /' "$output" >&2
  echo "FAILED: $1" >&2
  exit 1
}

if [[ "$("${launcher[0]}" --version)" != *open-mpi.org* ]]; then
  echo "skipped: needs Open MPI's --enable-recovery"
  exit 77
fi
export CADRE_TEST_DEADLINE_S=20
for ((reduction = 0; ; ++reduction)); do
  SECONDS=0
  CADRE_TEST_KILL_BEFORE=$reduction timeout 60 "${launcher[@]}" -n 3 --enable-recovery "$program" \
    --gtest_filter=KilledRank.* >"$output" 2>&1 || true
  if (($(grep -c '^complete, rank' "$output") == 3)); then break; fi
  (($(grep -c '^named, rank [02]: .*rank 1 .* died' "$output") == 2)) || fail "reduction $reduction: not two ranks that name it"
  ! grep -q 'AddressSanitizer' "$output" || fail "reduction $reduction: wrong accesses"
  ((SECONDS < CADRE_TEST_DEADLINE_S)) || fail "reduction $reduction: $SECONDS s"
done
((reduction > 3)) || fail "a step of $reduction reductions"
echo "$reduction of $reduction reductions: both ranks that are left name the one that was killed"
