#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A run whose disk fills up, is read-only for a while, and has space again: it goes on, says what it could not write, leaves
# nothing half-written, and loses no line of its metrics. Usage: disk_full_test.sh CADRE [LAUNCHER...]
# The disk is a small tmpfs in a mount namespace of this test; skipped where there can be none.
set -euo pipefail

if [[ -z "${CADRE_OWN_MOUNTS:-}" ]]; then
  namespace=(unshare --mount)
  if ((EUID != 0)); then namespace=(unshare --user --map-root-user --mount); fi
  "${namespace[@]}" true 2>/dev/null || { echo "disk_full_test: skipped: '${namespace[*]}' is not allowed"; exit 77; }
  CADRE_OWN_MOUNTS=1 exec "${namespace[@]}" "$0" "$@"
fi

# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run
mkdir "$run"
mount -t tmpfs -o size=64m tmpfs "$run"  # metrics of some 100,000 steps
pid=""
clean_up() {
  if [[ -n "$pid" ]]; then kill -9 "$pid" 2>/dev/null || true; fi
  umount -l "$run"
  rm -rf "$folder"
}
trap clean_up EXIT

# start WORD...: a run that would take hours, in the background. Its steps take milliseconds: lines of metrics that wait in
# memory must not reach their limit while a test looks.
start() {
  : >"$output"
  "${launcher[@]}" "$program" train "$folder/run.toml" steps=1000000 train.batch=128 log.every=1000 checkpoint.every=20 "$@" \
    "${two_ranks[@]}" >"$output" 2>&1 &
  pid=$!
}

# wait_for N TEXT: until the run has printed the text N times.
wait_for() {
  local i
  for ((i = 0; i < 1200; ++i)); do
    if (($(grep -cF -- "$2" "$output") >= $1)); then return; fi
    kill -0 "$pid" 2>/dev/null || fail "the run ended before it said '$2'"
    sleep 0.1
  done
  fail "the run never said '$2'"
}

fill() { cat /dev/zero >"$run/filler" 2>/dev/null || true; }

# stop: has all ranks save and end.
stop() {
  kill -USR1 "$pid"
  code=0
  wait "$pid" || code=$?
  pid=""
}

saved_steps() { find "$run/checkpoints" -maxdepth 1 -name 'step_*' -printf '%f\n' | sort | xargs; }

# Traces for which there is no room are said to be missing; the run goes on and saves.
start trace.first_step=300 trace.steps=20 trace.compare=false
wait_for 1 "saved $run/checkpoints/step_"
fill
wait_for 1 "warning: the traces of steps 300 to 319 were not written: rank "
rm "$run/filler"
[[ ! -e "$run/trace" ]] || fail "half of the traces: $(find "$run/trace")"
stop
succeeded "a run without room for its traces"
says "stopped by a signal after step"
rm -r "${run:?}"/*

for async in false true; do
  start checkpoint.async="$async"
  wait_for 2 "saved $run/checkpoints/step_"
  fill
  wait_for 2 "was not saved: rank"
  says "No space left on device" "stands, the run goes on"
  wait_for 1 "warning: cannot write $run/metrics.jsonl"  # which needs less, and finds a free page for longer
  stood=$(readlink "$run/checkpoints/latest")
  "$program" eval "$run/checkpoints/latest" --batches 1 >"$folder/eval" || fail "the checkpoint from before: $(cat "$folder/eval")"
  rm "$run/filler"

  # The file system refuses writes altogether.
  mount --bind "$run/checkpoints" "$run/checkpoints"
  mount -o remount,bind,ro "$run/checkpoints"
  seen=$(grep -cF "Read-only file system" "$output") || true
  wait_for $((seen + 1)) "Read-only file system"
  umount -l "$run/checkpoints"

  seen=$(grep -cF "saved $run/checkpoints/step_" "$output")
  wait_for $((seen + 1)) "saved $run/checkpoints/step_"
  says "has all its lines again"
  [[ "$(readlink "$run/checkpoints/latest")" != "$stood" ]] || fail "latest has not moved"
  stop
  succeeded "a stop when there is space again"
  [[ -z "$(find "$run/checkpoints" -name '*.tmp*')" ]] || fail "leftovers: $(find "$run/checkpoints")"
  last=$(grep -o '"step":[0-9]*' "$run/metrics.jsonl" | tail -n 1 | grep -o '[0-9]*')
  cmp <(seq "$last") <(grep -o '"step":[0-9]*' "$run/metrics.jsonl" | grep -o '[0-9]*') >&2 || fail "lines of metrics are missing"

  # A run that ends while its disk is full says so: what it did since the last checkpoint is lost.
  start checkpoint.async="$async"
  wait_for 1 "resumed after step $last"
  wait_for 1 "saved $run/checkpoints/step_"
  fill
  wait_for 1 "was not saved: rank"
  stood=$(saved_steps | sed 's/ *[^ ]*\.tmp[^ ]*//g')  # the run tries again and again
  stop
  ((code == 3)) || fail "exit code $code, expected 3"
  says "the last checkpoint, of step" "No space left on device" "the same command goes on"
  # Also nothing half-written: that would be a step_*.tmp.
  [[ "$(saved_steps)" == "$stood" ]] || fail "checkpoints are $(saved_steps), were $stood"
  rm -r "${run:?}"/*
done
