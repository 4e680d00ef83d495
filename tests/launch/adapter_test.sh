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
says "note: weights of train.init are rounded to bf16 (adapter.weights); adapter.weights=fp32 keeps them" \
  "note: $folder/tuned/base keeps the weights below the adapters"
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

# The run below goes on and prunes the checkpoint that the adapters belong to: they keep it, wherever their folder is.
on_two_ranks train "$folder/run.toml" "out=$folder/base" train.steps=6 checkpoint.keep=1
succeeded "train the base further"
[[ ! -e "$folder/base/checkpoints/step_00000003" ]] || fail "the base was not pruned"
grep -qF "\"base_model_name_or_path\": \"$folder/tuned/base\"" "$tuned/adapter_config.json" || fail "another base is named"
alone eval "$folder/base" --adapter "$folder/tuned"
[[ "$(loss)" != "$by_adapter" ]] || fail "the base is as it was: nothing is tested"
mv "$folder/tuned" "$folder/moved"
for run in moved tuned; do
  on_two_ranks eval "$folder/$run"
  succeeded "eval of adapters whose base was pruned, in $run"
  [[ "$(loss)" == "$by_adapter" ]] || fail "the pruned base counts in $run"
  [[ "$run" == tuned ]] || mv "$folder/moved" "$folder/tuned"
done
on_two_ranks train "$folder/run.toml" "${lora[@]}" "train.init=$folder/base/checkpoints/step_00000003" train.steps=6
succeeded "go on with adapters whose base was pruned"
says "resumed after step 5" "starts from the weights in $folder/tuned/base"
alone train "$folder/run.toml" "${lora[@]}" "train.init=$folder/merged" checkpoint.resume=never
succeeded "begin anew on a directory that no run prunes"
grep -qF "\"base_model_name_or_path\": \"$folder/merged\"" "$tuned/adapter_config.json" || fail "the base is that of the last run"
[[ ! -e "$folder/tuned/base" ]] || fail "a base is kept that nothing needs"
if [[ -d /dev/shm && "$(stat -c %d /dev/shm)" != "$(stat -c %d "$folder")" ]]; then
  elsewhere=$(mktemp -d -p /dev/shm)
  trap 'rm -rf "$folder" "$elsewhere"' EXIT
  alone train "$folder/run.toml" "${lora[@]}" "out=$elsewhere/tuned"
  succeeded "train adapters on another file system"
  says "note: $folder/base/checkpoints/step_00000006 cannot be kept in $elsewhere/tuned/base (Invalid cross-device link)"
  grep -qF "\"base_model_name_or_path\": \"$folder/base/checkpoints/step_00000006\"" \
    "$elsewhere/tuned/checkpoints/latest/adapter_config.json" || fail "another base is named from elsewhere"
fi

# A weight below adapters takes 2 bytes of a rank's memory in bf16 and 1 in fp8, and nothing else is kept of it: measured. A
# sanitizer takes memory of its own.
large=(model.hidden_size=256 model.n_routed_experts=32 model.moe_intermediate_size=512)
weights=$((3 * 256 * 512 * 33))  # of the mixture's experts
alone train "$folder/run.toml" "${large[@]}" "out=$folder/large" train.steps=1 train.warmup_steps=0
succeeded "train a larger base"
memory=()
for format in fp32 bf16 fp8; do
  alone train "$folder/run.toml" "${large[@]}" "out=$folder/$format" "train.init=$folder/large" adapter.rank=2 "adapter.weights=$format" train.steps=2
  succeeded "adapters on $format"
  memory+=("$(sed -n 's/.*at most: planned \([0-9.]*\) MiB, measured \([0-9.]*\) MiB.*/\1 \2/p' "$output")")
done
ldd "$program" | grep -q 'lib[at]san' || tr ' ' '\n' <<<"${memory[*]}" | awk -v weights="$weights" '{ mib[NR] = $1 } END {
  bf16 = (mib[2] - mib[4]) / (weights / 2^20)
  fp8 = (mib[4] - mib[6]) / (weights / 2^20)
  printf "bf16 saves %.2f bytes a weight, fp8 %.2f more\n", bf16, fp8
  exit !(bf16 > 1.6 && bf16 < 2.6 && fp8 > 0.7 && fp8 < 1.4 && mib[4] < 1.3 * mib[3] && mib[6] < 1.3 * mib[5])
}' >"$output" || fail "weights below adapters take other memory, planned and measured ${memory[*]} MiB"

on_two_ranks train "$folder/run.toml" adapter.rank=2
refused 2 'train.init = ""'
on_two_ranks train "$folder/run.toml" "${lora[@]}" adapter.targets=q_proj,x_proj
refused 2 "this model has no x_proj"
on_two_ranks train "$folder/run.toml" "out=$folder/other" "train.init=$folder/tuned"
refused 2 "adapter"
alone eval "$folder/base" --adapter "$folder/merged"
refused 2 "holds no adapter_config.json"
sed -i 's/"LORA"/"IA3"/' "$tuned/adapter_config.json"
alone eval "$folder/tuned"
refused 2 "adapter_config.json"
