#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The shipped pipeline of two rows of two ranks on real text, with an MTP module: the losses of one rank, and a
# report of the steps that were traced. Usage: pipeline_test.sh CADRE [LAUNCHER...], with a launcher of 4 ranks; without one, 4 thread ranks.
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

root=$(cd "$(dirname "$0")/../.." && pwd)
four_ranks=()
if ((${#launcher[@]} == 0)); then four_ranks=(--ranks 4); fi
cat "$root"/README.md "$root"/*/README.md >"$folder/text"
short=(train "$root/launch/configs/pipeline.toml" "data.path=$folder/text" train.steps=10 train.warmup_steps=2
  train.eval_batches=1 model.num_nextn_predict_layers=1)

# losses RUN: step, loss, and that of further tokens, a line each.
losses() {
  sed -n 's/.*"step":\([0-9]*\),"loss":\([0-9.e+-]*\),.*"mtp_loss":\([0-9.e+-]*\).*/\1 \2 \3/p' "$1/metrics.jsonl"
}

code=0
timeout "$time_limit" "${launcher[@]}" "$program" "${short[@]}" "out=$folder/pipeline" trace.first_step=5 trace.steps=3 \
  "${four_ranks[@]}" >"$output" 2>&1 || code=$?
succeeded "train on 4 ranks"
says "grid pipeline 2 x data 2 x expert 2" "traces of all" "steady state" "without overlap: passes"
[[ -s "$folder/pipeline/report.html" ]] || fail "a traced run leaves no report"
alone "${short[@]}" "out=$folder/alone" parallel.pipeline=1 parallel.expert=1
succeeded "train on one rank"

losses "$folder/pipeline" >"$folder/losses"
losses "$folder/alone" >"$folder/losses.alone"
(($(wc -l <"$folder/losses.alone") == 10)) || fail "not 10 losses: $(cat "$folder/losses.alone")"
paste -d ' ' "$folder/losses" "$folder/losses.alone" |
  awk '{ d = $2 / $5 - 1; f = $3 / $6 - 1
         if ($1 != $4 || d > 1e-5 || d < -1e-5 || f > 1e-5 || f < -1e-5) { print "    step " $0; bad = 1 } } END { exit bad }' >&2 ||
  fail "the losses of 4 ranks and of one differ by more than 1e-5"

alone report "$folder/pipeline"
succeeded report
says "hidden" "bubble: a rank works on no pass" "without overlap: passes" "dualpipev, 8 micro-batches"
grep -q '"schema": "cadre.report"' "$folder/pipeline/report.json" || fail "no report.json"
grep -q '<section id="timeline"' "$folder/pipeline/report.html" || fail "no timeline in report.html"
