#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SIGKILL of a random rank, or of mpirun, until KILLS of them came while experts moved: after each the run goes on from its last checkpoint. Every loss
# that it ever writes down is, to the bit, that of a run whose experts stay; nothing hangs; the old checkpoint stands.
# Usage: kill_moves.sh MOVING_VICTIM KILLS MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/../launch/common.sh" "$1"
# shellcheck source=tests/launch/killing.sh
source "$(dirname "$0")/../launch/killing.sh"

kills=$2
launcher=("${@:3}")
steps=$((kills < 20 ? 60 : 400))
run=$folder/run
# The norm of gradients is a sum in the order of experts on ranks.
words=(exchange.strategy=flat train.schedule=constant log.every=1000000 train.grad_clip=0 train.warmup_steps=0
  "train.steps=$steps" model.n_routed_experts=8 model.moe_intermediate_size=512 checkpoint.keep=2)
hits=0 switches=0 resumes=0

# launch moves|stays WORD...: on two ranks, in the background; the launcher is $pid.
launch() {
  : >"$output"
  "${launcher[@]}" -n 2 "$program" "$1" "$folder/run.toml" "${words[@]}" "${@:2}" >"$output" 2>&1 &
  pid=$!
}

moves_or_is_over() { [[ -e "$run/moving" ]] || is_gone; }

# expect_exact: each loss of the run is that of its step in the run whose experts stay.
expect_exact() {
  [[ -e "$run/losses" ]] || return 0
  head -n "$(wc -l <"$run/losses")" "$run/losses" >"$folder/written" # whole lines
  awk 'NR == FNR { expected[$1] = $2; next } expected[$1] "" != $2 "" { print "step", $1, $2, "not", expected[$1]; bad = 1 }
    END { exit bad }' "$folder/expected/losses" "$folder/written" || fail "kill $kill: other losses"
}

launch stays "out=$folder/expected"
within all_gone
wait "$pid" || fail "the run whose experts stay"
[[ "$(wc -l <"$folder/expected/losses")" == "$steps" ]] || fail "not $steps losses"

while ((hits < kills)); do
  rm -f "$run/moving"
  launch moves
  within moves_or_is_over
  # Somewhere in the first moves: half of the kills at once, the others a little later.
  if ((RANDOM % 2)); then sleep "0.$(printf '%03d' $((RANDOM % 300)))"; within moves_or_is_over; fi
  kill_one || continue
  ((kill < 10 * kills)) || fail "only $hits of $kill kills hit a move"
  if [[ -e "$run/moving" ]]; then
    hits=$((hits + 1))
    if grep -q switches "$run/moving"; then switches=$((switches + 1)); fi
  fi
  if grep -q 'resumed after' "$output"; then resumes=$((resumes + 1)); fi
  expect_exact
  if ((kill % 20 == 0)); then echo "$kill kills, $hits of them during a move, $resumes resumes"; fi
done

rm -f "$run/moving"
launch moves
within all_gone
wait "$pid" || fail "the last start"
expect_exact
[[ "$(tail -n 1 "$run/losses")" == "$(tail -n 1 "$folder/expected/losses")" ]] || fail "another last loss"
echo "$kill kills, $((hits - switches)) while experts travelled, $switches during a switch, $ended runs ended before; $resumes resumes; every loss as in the run whose experts stay"
