#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The folder of a run: one run at a time, none over a finished one of another configuration; runs that go on with other keys
# or other data say so; a recipe that changes in the course of a run is one run. Usage: run_folder_test.sh CADRE [LAUNCHER...]
set -euo pipefail

# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml
losses() { grep -o '"step":[0-9]*,"\(loss\|validation_loss\)":[0-9.e+-]*' "$folder/$1/metrics.jsonl"; }
says_not() { if grep -qF -- "$1" "$output"; then fail "'$1' is in the output"; fi; }

# Two runs in one folder: the second is refused while the first lives, whatever its number of ranks.
"${launcher[@]}" "$program" train "$run" steps=1000000 log.every=1000000 checkpoint.every=20 "${two_ranks[@]}" \
  >"$folder/first" 2>&1 &
first=$!
trap 'kill -KILL $first 2>/dev/null || true; rm -rf "$folder"' EXIT
for ((i = 0; i < 1200; ++i)); do
  [[ ! -e $folder/run/checkpoints/latest ]] || break
  sleep 0.1
done
[[ -e $folder/run/RUNNING ]] || fail "no RUNNING"
holder=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$folder/run/RUNNING")
on_two_ranks train "$run" steps=4
refused 2 "another run trains in this folder: pid $holder on $(hostname) (no batch job)" "out=PATH"
alone train "$run" model.hidden_size=32
refused 2 "another run trains in this folder: pid $holder"
kill -0 "$first" || fail "the first run ended"

# Killed, it leaves the file and no obstacle.
kill -KILL "$holder"
wait "$first" || true
[[ -e $folder/run/RUNNING ]] || fail "a killed run left no RUNNING: nothing is tested"
cp -r "$folder/run" "$folder/killed"
on_two_ranks train "$run" steps=100000000 out="$folder/killed" data.sequence_length=100
refused 2 "data.sequence_length = 100"
rm -r "$folder/run"
mkdir "$folder/run"
cp "$folder/killed/RUNNING" "$folder/run"
on_two_ranks train "$run" steps=4
succeeded "a run in the folder of one that was killed"
[[ ! -e $folder/run/RUNNING ]] || fail "RUNNING stays"

# Finished: the same again has nothing to do; another configuration is refused; more steps go on.
cp "$folder/run/metrics.jsonl" "$folder/metrics"
on_two_ranks train "$run" steps=4
succeeded "a finished run"
says "is finished, after step 4"
alone train "$run" steps=3
succeeded "fewer steps than are done"
says "train.steps = 3, and 4 are done"
for change in model.hidden_size=32 train.learning_rate=1e-3 "data=$0" seed=5; do
  on_two_ranks train "$run" steps=4 "$change"
  refused 2 "holds a run of another configuration, finished after step 4" "was " "out=PATH"
done
cmp "$folder/metrics" "$folder/run/metrics.jsonl" >&2 || fail "a refused run changed the folder"
on_two_ranks train "$run" steps=6 model.hidden_size=32
refused 2 'model.embed_tokens.weight" has shape [256,16], expected [256,32]' "model.hidden_size = 32, was 16"
on_two_ranks train "$run" steps=6 model.num_hidden_layers=1 model.first_k_dense_replace=0
refused 2 "model.layers." "model.num_hidden_layers = 1, was 2"

# What may change, with a note each.
changes=(train.batch=6 train.micro_batches=2 model.bias_update_rate=0.02 model.aux_loss_alpha=0.002 seed=7
  model.eos_token_id=0 model.rope_theta=20000 "train.stages=gate:2,all")
for change in "${changes[@]}"; do
  rm -rf "$folder/again"
  cp -r "$folder/run" "$folder/again"
  on_two_ranks train "$run" steps=6 out="$folder/again" "$change"
  succeeded "$change"
  says "resumed after step 4" "note: ${change%%=*} = " ", was " "note: train.steps = 6, was 4"
  says_not "new pass"
done
for change in "data.sequence_length=8" "data=$folder/text2"; do
  head -c 9000 "$folder/text" >"$folder/text2"
  rm -rf "$folder/again"
  cp -r "$folder/run" "$folder/again"
  on_two_ranks train "$run" steps=6 out="$folder/again" "$change"
  succeeded "$change"
  says "resumed after step 4" "a new pass over it begins, after 16 windows of pass 1"
done
# Data that changed under its name.
cp "$folder/text" "$folder/text2"
on_two_ranks train "$run" steps=4 out="$folder/changed" data="$folder/text2"
succeeded "a run"
tr a b <"$folder/text" >"$folder/text2"
on_two_ranks train "$run" steps=6 out="$folder/changed" data="$folder/text2"
succeeded "a run whose data changed"
says "the training data is not what the checkpoint was trained on" "with other content"

# DeepSeek-V3's recipe in one run: batch ramp, lambda 0.3 to 0.1, bias rate to 0, longer sequences with YaRN. Stopped
# anywhere and resumed, it gives the same bits.
cat "$run" - >"$folder/recipe.toml" <<END
[checkpoint]
every = 1
keep = 20
[from_step.3]
train.batch = 8
[from_step.5]
train.batch = 12
train.micro_batches = 2
model.mtp_loss_factor = 0.1
[from_step.7]
model.bias_update_rate = 0.0
data.sequence_length = 32
model.max_position_embeddings = 128
model.rope_scaling.type = "yarn"
model.rope_scaling.factor = 2
model.rope_scaling.original_max_position_embeddings = 64
END
recipe=("$folder/recipe.toml" steps=9 train.eval_every=3 model.num_nextn_predict_layers=1 model.mtp_loss_factor=0.3
  model.scoring_func=sigmoid model.topk_method=noaux_tc model.bias_update_rate=0.01)
on_two_ranks train "${recipe[@]}" out="$folder/whole"
succeeded "a recipe that changes"
says "note: from step 3 on: train.batch = 8" "note: from step 7 on: data.sequence_length = 32" "a new pass over it begins" "step 9/9"
tokens=$(grep -o '"tokens":[0-9]*' "$folder/whole/metrics.jsonl" | cut -d: -f2 | xargs)
[[ $tokens == "64 64 128 128 192 192 384 384 384" ]] || fail "tokens of the steps: $tokens"
grep -q '"yarn"' "$folder/whole/checkpoints/latest/config.json" || fail "no YaRN in config.json"
if grep -q '"yarn"' "$folder/whole/checkpoints/step_00000006/config.json"; then fail "YaRN too early"; fi
for step in 1 3 4 6 8; do
  rm -rf "$folder/part"
  cp -r "$folder/whole" "$folder/part"
  rm -r "$folder/part/FINISHED" "$folder/part/checkpoints"
  mkdir "$folder/part/checkpoints"
  cp -r "$folder/whole/checkpoints/step_0000000$step" "$folder/part/checkpoints"
  on_two_ranks train "${recipe[@]}" out="$folder/part"
  succeeded "the recipe, resumed after step $step"
  says "resumed after step $step"
  says_not "note: train."
  says_not "note: model."
  diff <(losses whole) <(losses part) >&2 || fail "resumed after step $step the losses differ"
done
alone train "$run" from_step.2.model.hidden_size=32
refused 2 "from step 2 on" "weight would be [" "was ["
alone train "$run" from_step.2.data.path=x
refused 2 "data.path cannot change during a run"
alone train "$run" from_step.2.train.micro_batches=9
refused 2 "from step 2 on: train.micro_batches = 9"
alone train "$run" out="$folder/"$'\xff'
refused 2 "is not UTF-8"
