#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cadre plan cluster and plan step, and parallel.schedule = auto, which uses both. Usage: plan_step_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

alone plan cluster "$folder/run.toml" --ranks 2 --out "$folder/cluster.toml"
succeeded "plan cluster"
says "[network]" "[[experts]]" "weight_grad = "
alone plan cluster "$folder/run.toml"
refused 2 "--out is missing"

# What it wrote is enough for a step on as many ranks, and here, with a network, for more than there are.
alone plan step "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --json "$folder/step.json"
succeeded "plan step"
says "2 ranks on 1 hosts" "exposed communication" "by formula" "tokens/s"
grep -q '"ranks":2' "$folder/step.json" || fail "no prediction in step.json"
alone plan step "$folder/run.toml" --ranks 4 --hosts 2 --cluster "$folder/cluster.toml"
refused 2 "--hosts = 2" "has no network"
sed -i '/^\[network\]/,/^$/{s/^alpha_s = [^ ]*/alpha_s = 1e-5/;s/^beta_s = [^ ]*/beta_s = 1e-10/}' "$folder/cluster.toml"
# Of the size of DeepSeek-V3's job: 16 rows of 128 ranks, experts over 64 of them.
for schedule in 1f1b zb1p dualpipe dualpipev; do
  alone plan step "$folder/run.toml" model.num_hidden_layers=32 model.n_routed_experts=256 model.num_experts_per_tok=8 \
    train.batch=15360 train.micro_batches=60 parallel.pipeline=16 parallel.expert=64 parallel.schedule="$schedule" \
    --ranks 2048 --hosts 256 --cluster "$folder/cluster.toml"
  succeeded "plan step of 2,048 ranks, $schedule"
  says "2048 ranks on 256 hosts" "schedule $schedule" "idle in the pipeline"
done
alone plan step "$folder/run.toml" model.num_hidden_layers=8 train.micro_batches=4 parallel.pipeline=2 parallel.schedule=auto \
  --ranks 4 --hosts 2 --cluster "$folder/cluster.toml"
succeeded "plan step with schedule = auto"
says "predicted ms a step: serial" "1f1b" "zb1p" "dualpipe " "dualpipev"

# The fastest grid of 4 ranks; half of the memory that its best needs leaves others, or none.
search=(plan search "$folder/run.toml" model.num_hidden_layers=4 train.micro_batches=4 --ranks 4 --hosts 2 --cluster "$folder/cluster.toml")
alone "${search[@]}" --json "$folder/search.json"
succeeded "plan search"
says "4 ranks on 2 hosts" "0 more too large" "best: parallel.pipeline="
alone "${search[@]}" --limit 0.00001
refused 2 "fits into --limit"

# Words that it does not take.
alone plan step "$folder/run.toml" --ranks 2
refused 2 "--cluster is missing" "cadre plan cluster"
alone plan step "$folder/run.toml" --ranks 3 --hosts 2 --cluster "$folder/cluster.toml"
refused 2 "--hosts = 2" "divisor of --ranks = 3"
alone plan step "$folder/run.toml" --cluster "$folder/none.toml"
refused 2 "$folder/none.toml"
sed 's/^update = .*//' "$folder/cluster.toml" >"$folder/bad.toml"
alone plan step "$folder/run.toml" --cluster "$folder/bad.toml"
refused 2 "bad.toml" "rows.update"

# A run that measures, chooses, says so and keeps it; a resume takes the same without measuring.
auto=(train "$folder/run.toml" --ranks 2 parallel.schedule=auto train.micro_batches=2 "out=$folder/auto")
alone "${auto[@]}" train.steps=2 trace.first_step=2 trace.steps=1
succeeded "a run that chooses"
says "schedule " "predicted ms a step: serial"
chosen=$(grep -oE '^schedule = "(1f1b|pair)"' "$folder/auto/run.toml") || fail "no schedule in run.toml"
alone "${auto[@]}" train.steps=3
succeeded "a resume"
says "as in the checkpoint that the run goes on from"
grep -qF "$chosen" "$folder/auto/run.toml" || fail "the resume has another schedule"

# The loads of a run.
alone plan step "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --loads "$folder/auto"
succeeded "plan step with loads"
says "of it for busier ranks"
alone plan step "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --loads "$folder/auto" model.n_routed_experts=8
refused 2 "4 experts, the model has 8"
