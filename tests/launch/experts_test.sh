#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Experts that are added to a trained model, compared, and merged. Usage: experts_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml

on_two_ranks train "$run"
succeeded train

# One process works, also where the launcher starts more.
in_one_process() {
  code=0
  timeout "$time_limit" "${launcher[@]}" "$program" "$@" >"$output" 2>&1 || code=$?
}

# Twice the experts and twice the top-k: the same model, as is what a merge makes of it again.
in_one_process experts grow "$folder/run" --out "$folder/grown" --noise 0
succeeded "experts grow"
says "experts 4 -> 8, of a token 2 -> 4" "grown/checkpoints/step_00000003"
alone eval "$folder/run" --batches 2
grep '^loss' "$output" >"$folder/loss"
on_two_ranks eval "$folder/grown" --batches 2
diff <(grep '^loss' "$output") "$folder/loss" >&2 || fail "growth changed the loss"
alone experts show "$folder/grown" --tokens 64
succeeded "experts show"
says "layer 1" "nearest" "1.0000"
! grep -q quality "$output" || fail "a history that is not kept"
alone train "$run" "out=$folder/history" steps=1 model.expert_history=true
succeeded "training with a history"
alone experts show "$folder/history" --tokens 64
succeeded "experts show with a history"
says "layer 1" "quality     success    factor" "none       0"
alone experts merge "$folder/grown" --out "$folder/merged" --top-k 2 --tokens 64
succeeded "experts merge"
says "least similarity of merged experts 1.0000, outputs changed by 0.00 %" "expert 3 was 6 (load"
alone eval "$folder/merged" --batches 2
diff <(grep '^loss' "$output") "$folder/loss" >&2 || fail "a merge of equal experts changed the loss"
on_two_ranks train "$folder/grown/run.toml" steps=4
succeeded "training after growth"
says "resumed after step 3" "step 4/4"
in_one_process experts merge "$folder/run" --out "$folder/grown"
refused 2 "grown/checkpoints exists already"
in_one_process experts merge "$folder/run" --out "$folder/other" --experts 4
refused 2 "--experts 4" "[1, 3]"
in_one_process experts grow "$folder/run"
refused 2 "--out is missing"
