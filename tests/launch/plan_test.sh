#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cadre plan: what it prints and writes, and what it refuses. Usage: plan_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

# A command with parts.
alone plan --help
succeeded "plan --help"
says "Usage: cadre plan COMMAND" "schedule"
alone plan
refused 2 "cadre plan COMMAND" "no command"
alone plan shedule
refused 2 "plan shedule" "schedule" "cadre plan --help"

# plan schedule
alone plan schedule --help
succeeded "plan schedule --help"
says "Usage: cadre plan schedule [options]" "--micro-batches" "dualpipev" "(R-1)(F+B-2W)"
alone plan schedule --schedule dualpipe --ranks 8 --micro-batches 20 --cost FB=2.4 --json "$folder/s.json" --svg "$folder/s.svg"
succeeded "plan schedule"
says "rank0 Fa0 Fa1 Fa2 Fa3 Fa4 Fa5 Fa6 Fb0 bb0 W" "makespan       57.6" "by rank 3 3.6 4.2" "by formula     4.2" "at most 9"
grep -q '"schema":"cadre.schedule/1"' "$folder/s.json" || fail "no schema in s.json"
head -c 4 "$folder/s.svg" | grep -q '<svg' || fail "s.svg is no chart"
alone plan schedule --ranks 5
succeeded "a fallback"
says "note: dualpipe needs an even number of ranks" "zb1p"
alone plan schedule --schedule dualpip
refused 2 "--schedule" "dualpipe"
alone plan schedule --cost G=1
refused 2 "--cost G=1" "F, B, Bi, W, FB"
alone plan schedule --cost F=0
refused 2 "--cost F = 0" "number > 0"
alone plan schedule --ranks 0
refused 2 "--ranks = 0"
alone plan schedule --svg "$folder/text/s.svg"
refused 3 "$folder/text/s.svg"

# plan memory: what a run of this size prints, and more ranks than any machine here has.
alone plan memory "$folder/run.toml" --ranks 2
succeeded "plan memory"
says "rank 0 of 2, the largest" "optimizer moments" "total"
planned=$(grep 'optimizer moments' "$output")
on_two_ranks train "$folder/run.toml" train.steps=1 log.wide=true "out=$folder/planned"
succeeded "the run that was planned"
says "$planned"
alone plan memory "$folder/run.toml" model.num_hidden_layers=8 model.n_routed_experts=256 train.batch=8192 parallel.pipeline=4 \
  parallel.expert=64 parallel.schedule=zb1p train.micro_batches=8 train.moments=fp32 --ranks 1024 --hosts 128 --limit 0.0148 --json "$folder/m.json"
succeeded "plan memory of 1,024 ranks"
says "of 1024" "with train.micro_batches=16" "MiB"
grep -q '"ranks":1024' "$folder/m.json" || fail "no plan in m.json"
alone plan memory "$folder/run.toml" --ranks 3 --hosts 2
refused 2 "--hosts = 2" "divisor of --ranks = 3"
alone plan memory "$folder/run.toml" --ranks 3 --rank 3
refused 2 "--rank = 3" "[-1, 2]"

# plan placement: the example that EPLB was published with.
cat >"$folder/loads.json" <<END
{"weight": [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]}
END
placement=(plan placement --loads "$folder/loads.json" --replicas 16 --groups 4 --nodes 2 --ranks 8)
alone "${placement[@]}" --policy eplb --json "$folder/eplb.json"
succeeded "plan placement --policy eplb"
says "12 experts in 16 slots on 8 ranks of 2 nodes, 4 groups" "1.208" "1.242" "2 layers planned in"
grep -qF '"phy2log":[[5,6,5,7,8,4,3,4,10,9,10,2,0,1,11,1],[7,10,6,8,6,11,8,9,2,4,5,1,5,0,3,1]]' "$folder/eplb.json" ||
  fail "phy2log is not that of EPLB"
alone "${placement[@]}" --json "$folder/placement.json"
succeeded "plan placement"
says "policy cadre" "1.208"
grep -qF '"schema":"cadre.placement/1"' "$folder/placement.json" || fail "no schema in placement.json"
alone "${placement[@]}" --previous "$folder/placement.json" --json "$folder/again.json"
succeeded "plan placement --previous"
grep -qF '"moved":[0,0]' "$folder/again.json" || fail "the same loads moved something"
alone plan placement --loads "$folder/loads.json" --replicas 15 --ranks 7
succeeded "sizes that do not divide"
alone plan placement --loads "$folder/loads.json" --replicas 15 --ranks 7 --policy eplb
refused 2 "7 ranks do not divide 15 replicas"
alone plan placement --loads "$folder/loads.json" --replicas 11 --ranks 4
refused 2 "--replicas 11" "12 experts"
alone plan placement --loads "$folder/loads.json"
refused 2 "--ranks"
alone plan placement --ranks 4
refused 2 "--loads"
alone plan placement --loads "$folder/none.json" --ranks 4
refused 2 "$folder/none.json"
echo '{"weight": [[1, NaN]]}' >"$folder/bad.json"
alone plan placement --loads "$folder/bad.json" --ranks 4
refused 2 "$folder/bad.json"
echo '{"weight": [[1, 1e999]]}' >"$folder/bad.json"
alone plan placement --loads "$folder/bad.json" --ranks 4
refused 2 "$folder/bad.json"
echo '{"weight": [[1, 2], [1]]}' >"$folder/bad.json"
alone plan placement --loads "$folder/bad.json" --ranks 4
refused 2 "weight[1] has 1 experts"
alone "${placement[@]}" --previous "$folder/bad.json"
refused 2 "$folder/bad.json"

# The loads of a run, and a run that is placed by them.
alone train "$folder/run.toml" --ranks 2
succeeded "a run to learn loads from"
alone plan placement --loads "$folder/run" --replicas 6 --ranks 2 --json "$folder/run.json"
succeeded "the loads of a run"
grep -qF '"layer":[1]' "$folder/run.json" || fail "the layer of the run is not in run.json"
alone train "$folder/run.toml" --ranks 2 out="$folder/placed" parallel.placement="$folder/run.json"
succeeded "a placed run"
loss_of() { grep -oE '"loss":[0-9.]+' "$1/metrics.jsonl" | cut -c8-14; }
[[ "$(loss_of "$folder/run")" == "$(loss_of "$folder/placed")" ]] || fail "the placed run has other losses"
alone train "$folder/run.toml" --ranks 3 out="$folder/other" parallel.placement="$folder/run.json"
refused 2 "on 2 ranks, the run has 4 on 3"
alone train "$folder/run.toml" out="$folder/other" parallel.placement="$folder/none.json"
refused 2 "$folder/none.json"
