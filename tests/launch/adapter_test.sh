#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Adapters from training to a merged model: the run file and its notes, checkpoints, --adapter of each command, refusals.
# Usage: adapter_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

alone train "$folder/run.toml" "out=$folder/base"
succeeded "train the base"
lora=("out=$folder/tuned" "train.init=$folder/base" adapter.rank=2 adapter.alpha=4 train.steps=4 checkpoint.every=2)

on_two_ranks train "$folder/run.toml" "${lora[@]}"
succeeded "train adapters"
says "starts from the weights in $folder/base/checkpoints/step_00000003"
says "note: weights of train.init are rounded to bf16 (adapter.weights); adapter.weights=fp32 keeps them"
alone plan memory "$folder/run.toml" "${lora[@]}" --ranks 2
says "fixed weights"
tuned=$folder/tuned/checkpoints/latest
[[ -e "$tuned/adapter_model.safetensors" && -e "$tuned/adapter_config.json" ]] || fail "no files of PEFT"
compgen -G "$tuned/model*" >/dev/null && fail "the checkpoint holds more than adapters"
grep -q '"r": 2' "$tuned/adapter_config.json" || fail "adapter_config.json has another rank"
alone train "$folder/run.toml" "${lora[@]}" train.steps=5
succeeded "go on with adapters"
says "resumed after step 4"

# The adapters alone, on their model, and in a merged model: the same loss, which is not that of the base.
loss() { grep -o '^loss [0-9.]*' "$output"; }
on_two_ranks eval "$folder/tuned"
succeeded "eval of adapters"
by_adapter=$(loss)
alone eval "$folder/base" --adapter "$folder/tuned"
[[ "$(loss)" == "$by_adapter" ]] || fail "--adapter gives another loss"
alone export "$folder/base" --adapter "$tuned" --out "$folder/merged" --format fp32
succeeded "export --adapter"
alone eval "$folder/merged" --data "$folder/text" --batches 2
succeeded "eval of the merged model"
alone eval "$folder/base"
[[ "$(loss)" != "$by_adapter" ]] || fail "the adapters change nothing"
alone generate "$folder/tuned" --prompt "line " --max-new 8 --temperature 0
succeeded "generate"
text=$(tail -n 1 "$output")
alone generate "$folder/merged" --prompt "line " --max-new 8 --temperature 0
[[ "$(tail -n 1 "$output")" == "$text" ]] || fail "the merged model continues in another way"

on_two_ranks train "$folder/run.toml" adapter.rank=2
refused 2 'train.init = ""'
on_two_ranks train "$folder/run.toml" "${lora[@]}" adapter.targets=q_proj,x_proj
refused 2 "this model has no x_proj"
on_two_ranks train "$folder/run.toml" "out=$folder/other" "train.init=$folder/tuned"
refused 2 "adapter"
alone eval "$folder/base" --adapter "$folder/merged"
refused 2 "holds no adapter_config.json"
sed -i 's/"LORA"/"IA3"/' "$folder/tuned/checkpoints/step_00000005/adapter_config.json"
alone eval "$folder/tuned"
refused 2 "adapter_config.json"
