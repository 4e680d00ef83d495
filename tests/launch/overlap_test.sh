#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two hosts with a slow link between them: a run that overlaps hides more of its exchanges than the same steps one op after
# the other. Figures of a busy machine say no more than that. Usage: overlap_test.sh CADRE HOSTS_SH
hosts=$2
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"

root=$(cd "$(dirname "$0")/../.." && pwd)
cat "$root"/README.md "$root"/*/README.md >"$folder/text"
small=(data.path="$folder/text" "out=$folder/run" train.steps=4 train.batch=16 train.micro_batches=8 trace.first_step=3
  trace.steps=2 parallel.ramp=2 model.hidden_size=256 model.num_hidden_layers=2 model.intermediate_size=512)

code=0
timeout "$time_limit" "$hosts" 2 1 --rate 200mbit -- "$program" train "$root/launch/configs/overlap.toml" "${small[@]}" \
  >"$output" 2>&1 || code=$?
if ((code == 77)); then
  tail -n 1 "$output"
  exit 77
fi
succeeded "train on two hosts"
says "hosts 2" "steady state" "without overlap: passes"

overlapped=$(sed -n 's/^steady state.*hidden [0-9.]* (\([0-9.]*\) %).*/\1/p' "$output")
serial=$(sed -n 's/^without overlap.*(\([0-9.]*\) % hidden).*/\1/p' "$output")
awk -v a="$overlapped" -v b="$serial" 'BEGIN { exit !(a > b) }' ||
  fail "with overlap $overlapped % of the exchanges are hidden, without $serial %"
