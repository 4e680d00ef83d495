#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SIGKILL of a random rank, or of mpirun, at random moments, every third one as soon as a save begins; after each the run
# goes on. Every loss that it ever writes down is, to the bit, that of a run without kills; on another number of ranks
# within 1e-5. Nothing hangs, and nothing stays behind once the run has started again.
# Usage: sigkill_test.sh CADRE KILLS MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"
# shellcheck source=tests/launch/killing.sh
source "$(dirname "$0")/killing.sh"

kills=$2
launcher=("${@:3}")
ranks=2
tolerance=1e-5
run=$folder/run
steps=$((kills < 20 ? 100 : 400))
words=(exchange.strategy=flat train.schedule=constant log.every=1000000)
saves_hit=0 resumes=0 elsewhere=0
declare -A leaked=()

# launch N WORD...: trains on N ranks, in the background; the launcher is $pid.
launch() {
  : >"$output"
  "${launcher[@]}" -n "$1" "$program" train "$folder/run.toml" "${words[@]}" "${@:2}" >"$output" 2>&1 &
  pid=$!
}

has_begun() { is_gone || grep -q '^exchange' "$output"; }
is_saving() { is_gone || compgen -G "$run/checkpoints/step_*.tmp" >/dev/null; }
segments() { find /dev/shm -maxdepth 1 -name 'vader_segment.*' -user "$(id -un)" -printf '%f\n' | sort; }
# is_mapped SEGMENT: some process uses it; that of another job on this machine.
is_mapped() { grep -qsF "/dev/shm/$1" /proc/[0-9]*/maps; }
# nap MOST: up to so many milliseconds.
nap() { sleep "$(printf '0.%03d' $((RANDOM % $1)))"; }

# losses FILE: "STEP LOSS" of each whole line, evaluations left out.
losses() { sed -nE 's/^\{"step":([0-9]+),"loss":([^,]*),.*\}$/\1 \2/p' "$1"; }

# expect_exact: what the run wrote down is what the run without kills did, step by step.
expect_exact() {
  [[ -e "$run/metrics.jsonl" ]] || return 0
  losses "$run/metrics.jsonl" >"$folder/losses"
  head -n "$(wc -l <"$folder/losses")" "$folder/expected" | cmp - "$folder/losses" >&2 || fail "kill $kill: other losses"
}

# resume_elsewhere N: a copy of the run goes on for some steps on N ranks.
resume_elsewhere() {
  local from
  [[ -e "$run/checkpoints/latest" ]] || return 0
  rm -rf "$folder/elsewhere"
  cp -r "$run" "$folder/elsewhere"
  from=$(readlink "$run/checkpoints/latest" | grep -o '[1-9][0-9]*$')
  launch "$1" out="$folder/elsewhere" steps=$((from + 4))
  within all_gone
  wait "$pid" || fail "kill $kill: on $1 ranks"
  says "resumed after step $from"
  losses "$folder/elsewhere/metrics.jsonl" | awk -v tolerance="$tolerance" -v from="$from" '
    NR == FNR { expected[$1] = $2; next }
    $1 > from && $1 in expected { d = $2 / expected[$1] - 1; if (d * d > tolerance * tolerance) bad = 1; ++n }
    END { exit bad || n == 0 }' "$folder/expected" - || fail "kill $kill: losses on $1 ranks"
  elsewhere=$((elsewhere + 1))
}

launch "$ranks" out="$folder/expected_run" steps="$steps"
within all_gone
wait "$pid" || fail "the run without kills"
losses "$folder/expected_run/metrics.jsonl" >"$folder/expected"
(($(wc -l <"$folder/expected") == steps)) || fail "not $steps losses"

while ((kill < kills)); do
  segments >"$folder/segments"
  written=$(stat -c %s "$run/metrics.jsonl" 2>/dev/null || echo 0)
  launch "$ranks" steps="$steps" checkpoint.every=3 checkpoint.async="$( ((RANDOM % 2)) && echo true || echo false)"
  case $((kill % 3)) in
    0) within has_begun; nap 700; within is_saving ;;
    1) within has_begun; nap 999 ;;
    2) sleep $((RANDOM % 2)); nap 999 ;;  # also before MPI has begun
  esac
  kill_one || continue
  if compgen -G "$run/checkpoints/step_*.tmp" >/dev/null; then saves_hit=$((saves_hit + 1)); fi
  if grep -q 'resumed after' "$output" && (($(stat -c %s "$run/metrics.jsonl") != written)); then resumes=$((resumes + 1)); fi
  if grep -qE 'cadre: error|warning:' "$output"; then echo "kill $kill: $(grep -m 1 -E 'cadre: error|warning:' "$output")"; fi
  while read -r segment; do
    is_mapped "$segment" || leaked[$segment]=1
  done < <(segments | comm -13 "$folder/segments" -)
  expect_exact
  if ((kill % 4 == 0)); then resume_elsewhere $((RANDOM % 2 ? 1 : 3)); fi
  if ((kill % 20 == 0)); then echo "$kill kills, $saves_hit of them during a save, $resumes resumes that trained, $elsewhere elsewhere"; fi
done

# Once more to the end, when segments are old enough to be known as nobody's.
sleep 11
launch "$ranks" steps="$steps" checkpoint.every=100
within all_gone
wait "$pid" || fail "the last start"
expect_exact
[[ -e "$run/FINISHED" ]] || fail "no FINISHED"
for segment in "${!leaked[@]}"; do
  [[ ! -e "/dev/shm/$segment" ]] || is_mapped "$segment" || fail "/dev/shm/$segment was left behind"
done
compgen -G "$run/checkpoints/step_*.tmp" >/dev/null && fail "leftovers of a save"
echo "$kills kills, $saves_hit during a save; $resumes resumes of it trained on, to the same bits, $elsewhere on another" \
  "number of ranks; ${#leaked[@]} segments of shared memory were left behind and removed"
