#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two steps on two ranks under Valgrind: no invalid read or write, no use of what was never written, nothing lost for good.
# Usage: valgrind.sh CADRE MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/../launch/common.sh" "$1"
suppressions=("--suppressions=$(dirname "$0")/valgrind.supp")
of_mpi=/usr/share/openmpi/openmpi-valgrind.supp
if [[ -e "$of_mpi" ]]; then suppressions+=("--suppressions=$of_mpi"); fi
code=0
timeout 1800 "${@:2}" -n 2 valgrind --error-exitcode=9 --leak-check=full --show-leak-kinds=definite \
  --errors-for-leak-kinds=definite --num-callers=30 "${suppressions[@]}" "$program" train "$folder/run.toml" train.steps=2 \
  out="$folder/run" exchange.deadline_s=600 >"$output" 2>&1 || code=$?
((code == 0)) || fail "exit code $code"
[[ -e $folder/run/FINISHED ]] || fail "no FINISHED"
grep 'ERROR SUMMARY' "$output"
