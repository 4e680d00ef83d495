#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cadre score against a case that another program computed, and against itself on other ranks.
# Usage: score_test.sh CADRE COMPARE_SCORES GOLDEN_FOLDER [LAUNCHER...]
compare=$2
golden=$3/v3_mini
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1" "${@:4}"

score=(score "$golden" --tokens "$golden/expected.safetensors" --grads --routing --hidden --out)

# equal FILE EXPECTED: says how they differ when they do.
equal() { "$compare" "$@" >"$output" || fail "$1 differs from $2"; }

alone "${score[@]}" "$folder/one.safetensors"
succeeded "score on one rank"
says "loss" "nats a token, over 46 tokens"
equal "$folder/one.safetensors" "$golden/expected.safetensors"
says "99 tensors compared"
for strategy in flat shared hierarchical all_gather; do
  on_two_ranks "${score[@]}" "$folder/two.safetensors" "exchange.strategy=$strategy" parallel.schedule=pair train.micro_batches=2
  succeeded "score on two ranks, $strategy"
  equal "$folder/two.safetensors" "$golden/expected.safetensors"
done
for strategy in flat shared hierarchical all_gather; do
  on_two_ranks "${score[@]}" "$folder/two.safetensors" "exchange.strategy=$strategy" exchange.balance=host
  succeeded "score on two ranks that share rows, $strategy"
  equal "$folder/two.safetensors" "$golden/expected.safetensors"
done
on_two_ranks "${score[@]}" "$folder/two.safetensors" parallel.pipeline=2 train.micro_batches=2
succeeded "score on two stages"
equal "$folder/two.safetensors" "$golden/expected.safetensors"

# The comparison sees a difference.
sed 's/2.5/2.6/' "$golden/config.json" >"$folder/config.json"
ln -s "$golden/model.safetensors" "$folder/model.safetensors"
alone score "$folder" --tokens "$golden/expected.safetensors" --out "$folder/other.safetensors"
succeeded "score with another factor"
if "$compare" "$folder/other.safetensors" "$folder/one.safetensors" >"$output"; then fail "another factor changes nothing"; fi

# A model that is trained here: what any number of ranks reads is what was saved.
sed -i 's/^hidden_size/model_type = "deepseek_v3"\nq_lora_rank = 6\nkv_lora_rank = 5\nqk_nope_head_dim = 4\nqk_rope_head_dim = 6\nv_head_dim = 3\nnum_nextn_predict_layers = 1\n&/' "$folder/run.toml"
on_two_ranks train "$folder/run.toml"
succeeded "training with latent attention and a further token"
checkpoint=$folder/run/checkpoints/latest
on_two_ranks score "$checkpoint" --tokens "$golden/expected.safetensors" --out "$folder/two.safetensors" --routing
succeeded "score of a trained model on two ranks"
alone score "$checkpoint" --tokens "$golden/expected.safetensors" --out "$folder/one.safetensors" --routing
succeeded "score of a trained model on one rank"
equal "$folder/one.safetensors" "$folder/two.safetensors"
grep -q 'model.layers.2.shared_head.head.weight' "$checkpoint"/*.index.json || fail "no copy of the head beside the module"

# Evaluation on ranks that share rows.
on_two_ranks train "$folder/run.toml" "out=$folder/shares" exchange.balance=host
succeeded "training on ranks that share rows"
on_two_ranks eval "$folder/shares"
succeeded "evaluation on ranks that share rows"
says "combine slot_order, balance host"
grep -E "^loss|^layer" "$output" >"$folder/two.txt"
alone eval "$folder/shares"
succeeded "the same on one rank"
says "loss " "layer "
grep -E "^loss|^layer" "$output" | diff - "$folder/two.txt" || fail "evaluation differs on two ranks that share rows"

# Routing is replayed: to texts, and from step to step.
alone generate "$checkpoint" --prompt "to be" --max-new 3 --replay "$folder/two.safetensors"
succeeded "generation with recorded routing"
says "replayed " " % would be others"
on_two_ranks generate "$checkpoint" --prompt a --prompt b --prompt c --prompt d --prompt e --prompt f --prompt g --max-new 3 --replay "$folder/two.safetensors"
refused 2 "allowed: a multiple of the 7 texts"
on_two_ranks train "$folder/run.toml" "out=$folder/recorded" "log.routing=$folder/routing"
succeeded "training that records its routing"
on_two_ranks train "$folder/run.toml" "out=$folder/replayed" --replay "$folder/routing" "log.routing=$folder/again" compute.precision=bf16
succeeded "training with recorded routing"
says "replayed " " % would be others"
diff -r "$folder/routing" "$folder/again" || fail "other experts than were replayed"
on_two_ranks train "$folder/run.toml" "out=$folder/replayed" --replay "$folder/routing" "log.routing=$folder/routing"
refused 2 "train.replay and log.routing name one folder"

# A config.json gives the shape, not the weights beside it.
alone train "$folder/run.toml" "model.config=$checkpoint/config.json" "out=$folder/fresh" steps=1 train.warmup_steps=0
succeeded "training from a config.json"
says "$checkpoint/config.json: only the shape is read; the weights beside it (model.safetensors"

# A new run starts from the weights of any directory, here one without what another program would not have written.
mkdir "$folder/published"
cp "$checkpoint"/{config.json,*.safetensors*} "$folder/published"
still=(train.steps=1 train.learning_rate=0 train.min_learning_rate=0 train.weight_decay=0 model.bias_update_rate=0)
on_two_ranks train "$folder/run.toml" "train.init=$folder/published" "out=$folder/tuned" "${still[@]}"
succeeded "training from given weights"
says "starts from the weights in $folder/published" "step 1/1" "note: $folder/published: this run has model.bias_update_rate = 0, there 0."
alone score "$folder/tuned" --tokens "$golden/expected.safetensors" --out "$folder/two.safetensors" --routing
succeeded "score of what was not changed"
equal "$folder/one.safetensors" "$folder/two.safetensors"
alone train "$folder/run.toml" "checkpoint.resume=$folder/published" "out=$folder/tuned_too" train.steps=1
succeeded "training from given weights, under the name of another key"
says "starts from the weights in $folder/published"
alone score "$folder/tuned_too" --tokens "$golden/expected.safetensors" --out "$folder/two.safetensors" --routing
succeeded "score of what was trained"
if "$compare" "$folder/one.safetensors" "$folder/two.safetensors" >"$output"; then fail "a step changes nothing"; fi

# MTP modules may be new. What transformers made has its logits.
made=$3/huggingface/v3_gelu
sed '/^\[model\]/,/^\[data\]/{/^\[data\]/!d}' "$folder/run.toml" >"$folder/tune.toml"
on_two_ranks train "$folder/tune.toml" "train.init=$made" "out=$folder/modules" "data=$3/lora/families/tokens.bin" data.sequence_length=8 data.validation_fraction=0 model.num_nextn_predict_layers=1 "${still[@]}"
succeeded "training with new modules"
says "starts from the weights in $made" "note: the MTP modules, which it has none of, start with random weights"
grep -q 'model.layers.2.eh_proj.weight' "$folder"/modules/checkpoints/latest/*.index.json || fail "no module is saved"
for model in "$made" "$folder/modules"; do
  alone score "$model" --tokens "$made/expected.safetensors" --out "$folder/${model##*/}.safetensors"
  succeeded "score of $model"
done
equal "$folder/modules.safetensors" "$folder/v3_gelu.safetensors"

# Weights that a run cannot start from.
on_two_ranks train "$folder/run.toml" "train.init=$folder/none" "out=$folder/x"
refused 2 "$folder/none: no such directory"
on_two_ranks train "$folder/run.toml" "train.init=$folder/published" "model.config=$golden/config.json" "out=$folder/x"
refused 2 "train.init defines the model"
on_two_ranks train "$folder/run.toml" "train.init=$folder/published" model.num_hidden_layers=3 "out=$folder/x"
refused 2 "$folder/published: the model of this run has another shape: model.num_hidden_layers = 3, there 2"
on_two_ranks train "$folder/run.toml" "train.init=$folder/published" model.n_routed_experts=2 "out=$folder/x"
refused 2 "another shape: model.n_routed_experts = 2, there "
on_two_ranks train "$folder/run.toml" "train.init=$folder/published" model.hidden_size=32 "out=$folder/x"
refused 2 "another shape: model.hidden_size = 32, there "
[[ ! -e "$folder/x/checkpoints" ]] || fail "a refused run left a checkpoint"

# What cannot be scored.
on_two_ranks score "$golden" --tokens "$golden/expected.safetensors"
refused 2 "--out is missing"
on_two_ranks score "$golden" --tokens "$golden/model.safetensors" --out "$folder/x"
refused 2 "model.safetensors has no tensor tokens"
on_two_ranks score "$golden" --tokens "$golden/expected.safetensors" --out "$folder/x" model.vocab_size=97
refused 2 "key of [model]"
sed -i 's/"vocab_size": 96/"vocab_size": 3/' "$folder/config.json"
on_two_ranks score "$folder" --tokens "$golden/expected.safetensors" --out "$folder/x"
refused 2 "of sequence" "[0, vocab_size = 3)"
