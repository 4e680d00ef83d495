#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The life of a run on two ranks: train, evaluate, generate, carry on. Usage: run_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml
checkpoint=$folder/run/checkpoints/latest

# steps_logged: the steps of metrics.jsonl, in order; an evaluation logs its step too, so each counts once.
steps_logged() { grep -o '"step": *[0-9]*' "$folder/run/metrics.jsonl" | grep -o '[0-9]*' | uniq | xargs; }

on_two_ranks train "$run" --print-config
succeeded print-config
says "hidden_size = 16" "deadline_s = 30"
[[ ! -e "$folder/run" ]] || fail "--print-config trained"

on_two_ranks train "$run"
succeeded train
says "ranks 2 | hosts 1 | ranks a host 2 | grid data 2 x expert 2" "combine slot_order" "fp32" "cpus" "data $folder/text: 1 file, $(wc -c <"$folder/text") bytes, "
[[ -e "$folder/run/FINISHED" ]] || fail "no FINISHED"
[[ "$(steps_logged)" == "1 2 3" ]] || fail "logged steps: $(steps_logged)"
trained_loss=$(sed -n 's/^step 3 | validation loss //p' "$output")
[[ "$trained_loss" == 5.* ]] || fail "no validation loss near ln 256 = 5.545"

# The number of the training, from a checkpoint directory, from the folder of the run, on two ranks and on one.
on_two_ranks eval "$checkpoint" --data "$folder/text" --batches 2
succeeded eval
says "held-out tokens" "layer   1 | experts"
grep '^loss' "$output" >"$folder/loss"
says "loss $trained_loss nats a token"
alone eval "$folder/run" --batches 2
succeeded "eval on one rank"
diff <(grep '^loss' "$output") "$folder/loss" >&2 || fail "the loss depends on the number of ranks"
fp32=$(grep -o 'loss [0-9.]*' "$output")
alone eval "$folder/run" --batches 2 --weights int8 --threads 2
succeeded "eval of weights in int8"
says "perplexity" "with weights in fp32: $fp32"
alone eval "$folder/run" --batches 2 --weights int4
refused 2 "--weights" "fp32 | bf16 | int8 | fp8"
alone train "$folder/run.toml" compute.weights=int8 "out=$folder/x"
refused 2 "compute.weights = int8, allowed: fp32"
alone train "$folder/run.toml" compute.products=mkl "out=$folder/x"
refused 2 "compute.products" "mkl"

# The weights in fp8, which other ranks read.
alone export "$checkpoint" --out "$folder/fp8" --format fp8
succeeded export
says " of them in fp8"
on_two_ranks eval "$folder/fp8" --batches 2
succeeded "eval of weights in fp8"
says "held-out tokens"
alone export "$checkpoint" --out "$folder/fp8"
refused 2 "is there already"

generate=(generate "$checkpoint" --prompt "line " --max-new 40 --seed 7)
on_two_ranks "${generate[@]}"
succeeded generate
cp "$output" "$folder/generated"
[[ "$(head -c 5 "$folder/generated")" == "line " ]] || fail "the prompt does not come first"
(($(wc -c <"$folder/generated") == 46)) || fail "not prompt, 40 bytes and an end of line"
alone "${generate[@]}"
cmp "$output" "$folder/generated" >&2 || fail "the text depends on the number of ranks"
alone "${generate[@]/7/8}"
if cmp -s "$output" "$folder/generated"; then fail "the text does not depend on the seed"; fi
# A cache changes no byte, and knows the prompt when it is read again.
on_two_ranks "${generate[@]}" --cache-mib 16 --samples 2
succeeded "generate with a cache"
says " % of "
! grep -q " 0.0 % of" "$output" || fail "the second text found nothing in the cache"
head -c 45 "$output" | cmp - <(head -c 45 "$folder/generated") >&2 || fail "the cache changed the text"
# Experts may move between passes: the text stays.
on_two_ranks "${generate[@]}" --rebalance 3 --row-bits independent
succeeded "generate with experts that may move"
says "experts  "
head -c 46 "$output" | cmp - "$folder/generated" >&2 || fail "experts that may move changed the text"
alone "${generate[@]}" --rebalance auto
says "note: --rebalance moves no expert: each rank holds all experts"
alone "${generate[@]}" --rebalance often
refused 2 "--rebalance" "auto, or an integer >= 0"
alone generate "$checkpoint" --prompt "用Java实现: 1 + 1" --max-new 1 --explain --complexity simple
succeeded "generate --explain"
says "task     CODING" "keyword  实现 of CODING" "keyword  + of MATH" "experts  none of 4 belong to the task, but the router gets no task" \
  "at most 1 experts a token"
alone generate "$checkpoint" --prompt "line " --complexity hard
refused 2 "--complexity" "critical"

on_two_ranks generate "$checkpoint" --prompt "line " --max-new 60
refused 2 "60 new tokens after a prompt of 5" "64"
on_two_ranks generate "$checkpoint"
refused 2 "no prompt" "--prompts"
on_two_ranks generate "$checkpoint" --prompt "line " --prompt "" --max-new 9
refused 2 "prompt 2 of 2 is empty"
alone generate "$checkpoint" --prompts "$folder/nowhere"
refused 2 "cannot be read"
alone generate "$checkpoint" --prompt "line " --speculate on
refused 2 "--speculate on" "num_nextn_predict_layers"

# Several prompts with drafts, against one after the other without.
on_two_ranks train "$run" out="$folder/further" model.num_nextn_predict_layers=1
succeeded "train with an MTP module"
printf 'the next one\nline 7\n' >"$folder/prompts"
# Apart, because mpirun may mix lines of both outputs.
"${launcher[@]}" "$program" generate "$folder/further" --prompt "line " --prompts "$folder/prompts" --max-new 30 \
  --temperature 0 "${two_ranks[@]}" >"$folder/together" 2>"$output" || fail "generate with drafts"
says "second-token acceptance "
: >"$folder/in_turn"
for prompt in "line " "the next one" "line 7"; do
  alone generate "$folder/further" --prompt "$prompt" --max-new 30 --temperature 0 --speculate off
  succeeded "generate without drafts"
  cat "$output" >>"$folder/in_turn"
done
cmp "$folder/together" "$folder/in_turn" >&2 || fail "drafts or company changed a text"

# Experts that are lost: the others do their work, and without any the shared one does.
on_two_ranks eval "$checkpoint" --batches 2 --dead-experts 1,2
succeeded "eval without two experts"
says "dead 2 of 4" "without experts 1,2: the best expert of "
! grep -q "of 0.00 %" "$output" || fail "no token missed an expert that is dead"
! diff <(grep '^loss' "$output") "$folder/loss" >/dev/null || fail "two dead experts changed no loss"
on_two_ranks eval "$checkpoint" --batches 2 --dead-experts 0,1,2,3
succeeded "eval without any expert"
says "dead 4 of 4" "without experts 0,1,2,3: the best expert of 100.00 %"
many=("${generate[@]}" --samples 20)  # experts of a model that is hardly trained change few tokens
on_two_ranks "${many[@]}"
succeeded "generate twenty texts"
cp "$output" "$folder/many"
on_two_ranks "${many[@]}" --dead-experts 0,1,2,3
succeeded "generate without any expert"
says "without experts 0,1,2,3: the best expert of 100.00 % of the tokens, over the layers"
! cmp -s <(grep -av "^without experts" "$output") "$folder/many" || fail "the text does not depend on the experts"
alone eval "$checkpoint" --dead-experts 4
refused 2 "dead_experts" "[0, 3]"

# Experts and copies of them where their loads want them to be.
alone plan placement --loads "$folder/run" --replicas 6 --ranks 2 --json "$folder/placement.json"
succeeded "plan placement"
on_two_ranks eval "$checkpoint" --batches 2 --placement "$folder/placement.json"
succeeded "eval with copies of experts"
diff <(grep '^loss' "$output") "$folder/loss" >&2 || fail "the loss depends on where experts are"
on_two_ranks "${generate[@]}" --placement "$folder/placement.json"
succeeded "generate with copies of experts"
cmp "$output" "$folder/generated" >&2 || fail "the text depends on where experts are"
alone eval "$checkpoint" --placement "$folder/placement.json"
refused 2 "places 4 experts on 2 ranks, the run has 4 on 1"

# Two more steps, then none.
on_two_ranks train "$run" steps=5 exchange.progress=thread compute.threads=1000
succeeded resume
says "note: exchange.progress = thread does not run"
says "resumed after step 3"
[[ "$(steps_logged)" == "1 2 3 4 5" ]] || fail "logged steps: $(steps_logged)"
on_two_ranks train "$run" steps=5
succeeded "a finished run"
[[ "$(steps_logged)" == "1 2 3 4 5" ]] || fail "logged steps: $(steps_logged)"
