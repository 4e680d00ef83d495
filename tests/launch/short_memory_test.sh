#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two hosts of two ranks, and one of them has /dev/shm of so many MiB: with exchange.strategy=auto the run trains
# with a strategy that all ranks agreed on, with hierarchical it does too, or it ends with one line, before the deadline.
# Usage: short_memory_test.sh CADRE HOSTS_SH MEBIBYTES...
hosts=$2 sizes=("${@:3}")
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"

root=$(cd "$(dirname "$0")/../.." && pwd)
cat "$root"/README.md "$root"/*/README.md >"$folder/text"
deadline=60

# train STRATEGY MEBIBYTES
train() {
  rm -rf "$folder/run"
  code=0
  SECONDS=0
  timeout "$time_limit" "$hosts" 2 2 --short-memory "$2m" -- "$program" train "$root/launch/configs/v3-mini.toml" \
    data.path="$folder/text" "out=$folder/run" train.steps=2 train.batch=4 train.eval_batches=1 "exchange.strategy=$1" \
    "exchange.deadline_s=$deadline" >"$output" 2>&1 || code=$?
  if ((code == 77)); then
    tail -n 1 "$output"
    exit 77
  fi
  ((SECONDS < deadline)) || fail "$1 took $SECONDS s, and the deadline is $deadline s"
}

trained=0
for mebibytes in "${sizes[@]}"; do
  train auto "$mebibytes"
  succeeded "auto, $mebibytes MiB"
  taken=$(sed -nE 's/^exchange ([a-z_]+):.*/\1/p' "$output")
  [[ -n "$taken" ]] || fail "no line says which strategy was taken"
  if grep -q "not hierarchical: " "$output"; then says "on host1 want to share"; fi
  train hierarchical "$mebibytes"
  if ((code == 0)); then
    trained=$((trained + 1)) ended="trains"
  else
    refused 3 "on host1 want to share" "/dev/shm has"
    [[ "$taken" != hierarchical ]] || fail "auto takes hierarchical where there is no room"
    ended="is refused with one line"
  fi
  echo "$mebibytes MiB: auto takes $taken, hierarchical $ended, $SECONDS s"
done
((trained < ${#sizes[@]})) || fail "no run had too little memory"
