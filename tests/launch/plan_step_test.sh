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
says "4 ranks on 2 hosts" "0 more too large" "best: parallel.pipeline=" " train.micro_batches="
micro_batches_found() { sed '1,2d;/^best/d' "$output" | awk '{print $4}' | sort -un | tr '\n' ' '; }
alone "${search[@]}" train.batch=64 --show 1000
[[ $(micro_batches_found) == "1 2 4 8 16 " ]] || fail "the search took other micro-batches: $(micro_batches_found)"
best_of() { awk 'NR == 3 {print $8}' "$output"; }
varied=$(best_of)
alone "${search[@]}" train.batch=64 --show 1000 --keep-micro-batches
[[ $(micro_batches_found) == "4 " ]] || fail "--keep-micro-batches took others: $(micro_batches_found)"
awk "BEGIN {exit !($varied <= $(best_of))}" || fail "more choices made the best step slower"
alone "${search[@]}" --limit 0.00001
refused 2 "fits into --limit"

# What is not simulated changes nothing: the same table as of all, for links that cost little, much, and above all by the message.
sed '/^\[network\]/,/^$/{s/^beta_s = [^ ]*/beta_s = 1e-7/}' "$folder/cluster.toml" >"$folder/narrow.toml"
sed '/^\[network\]/,/^$/{s/^alpha_s = [^ ]*/alpha_s = 1e-2/}' "$folder/cluster.toml" >"$folder/far.toml"
table_of() { tail -n +2 "$output"; }
simulated() { grep -oE '[0-9]+ simulated' "$output" | cut -d' ' -f1; }
fewer=0
for cluster in cluster narrow far; do
  for ranks in "8 2" "16 4"; do
    read -r num_ranks hosts <<<"$ranks"
    for limit in 0 0.0147; do
      search=(plan search "$folder/run.toml" model.num_hidden_layers=8 model.n_routed_experts=8 train.micro_batches=8 train.batch=128
        --ranks "$num_ranks" --hosts "$hosts" --cluster "$folder/$cluster.toml" --limit "$limit" --show 3)
      alone "${search[@]}" --exhaustive
      succeeded "plan search --exhaustive"
      table_of >"$folder/exhaustive"
      all=$(simulated)
      alone "${search[@]}"
      succeeded "plan search"
      table_of | diff "$folder/exhaustive" - >&2 || fail "the search found others than --exhaustive"
      if (($(simulated) < all)); then fewer=$((fewer + 1)); fi
    done
  done
done
# How many are left out depends on the measured rates.
((fewer > 0)) || fail "no search simulated fewer than --exhaustive"
alone plan search "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --exhaustive --show 2
succeeded "plan search --show"
says " simulated, 0 more too large"

# The picture of a step.
alone plan step "$folder/run.toml" model.num_hidden_layers=8 train.micro_batches=8 train.batch=32 parallel.pipeline=4 parallel.schedule=zb1p \
  --ranks 8 --hosts 2 --cluster "$folder/cluster.toml" --svg "$folder/step.svg"
succeeded "plan step --svg"
python3 - "$folder/step.svg" <<'END' || fail "step.svg"
import sys
import xml.etree.ElementTree as xml

root = xml.parse(sys.argv[1]).getroot()
texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
assert root.get("width") == "800" and root.get("viewBox").startswith("0 0 800 "), root.attrib
assert texts[0].startswith("zb1p on 8 ranks (pipeline 4 x data 2 x expert 2)"), texts[0]
for text in ["compute", "exposed communication", "hidden communication", "bubble", "row 0", "row 3", "0", "ms"]:
    assert text in texts, text
assert {path.get("class") for path in root.iter("{http://www.w3.org/2000/svg}path")} >= {"c", "x", "h"}
END
alone plan step "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --svg "$folder/text/step.svg"
refused 3 "$folder/text/step.svg"

# DeepSeek-V3 as published, and on fewer ranks; the fastest that fits into 512 GiB a rank.
root=$(cd "$(dirname "$0")/../.." && pwd)
v3=("$root/launch/configs/v3-671b.toml" "model.config=$root/launch/configs/v3-671b-shape.json")
cluster=(--cluster "$root/launch/configs/clusters/h800.toml")
alone plan memory "${v3[@]}" --ranks 2048 --hosts 256 --limit 74.5
succeeded "plan memory of DeepSeek-V3"
says "of 2048" "into 76288.0 MiB"
for grid in "64 4 16" "512 8 64" "2048 16 64"; do
  read -r num_ranks pipeline expert <<<"$grid"
  for schedule in 1f1b zb1p dualpipe dualpipev; do
    alone plan step "${v3[@]}" --ranks "$num_ranks" --hosts "$((num_ranks / 8))" "${cluster[@]}" "parallel.pipeline=$pipeline" \
      "parallel.expert=$expert" "train.batch=$((num_ranks * 120 / pipeline))" parallel.schedule="$schedule"
    succeeded "plan step of DeepSeek-V3 on $num_ranks ranks, $schedule"
    says "$num_ranks ranks on" "schedule $schedule, exchange hierarchical"
  done
done
alone plan search "${v3[@]}" --ranks 64 --hosts 8 "${cluster[@]}" train.batch=256 train.micro_batches=16 \
  data.sequence_length=512 --limit 512 --keep-micro-batches
succeeded "plan search of DeepSeek-V3"
says "best: parallel.pipeline="

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
