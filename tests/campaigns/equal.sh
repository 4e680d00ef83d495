#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains 12 steps of quickstart and v3-mini with two builds of the program, for every strategy, wire and number of ranks, and
# compares losses and checkpoints bit for bit. Usage: equal.sh BEFORE AFTER
set -euo pipefail

before=$1 after=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$(dirname "$0")/../.."
cat comm/exchange/*.cpp >"$folder/text"

# digest PROGRAM OUT WORD...: of the losses of a run and of the tensors that it saved.
digest() {
  local program=$1 out=$2
  rm -rf "$out"
  if ! "$program" train "${@:3}" out="$out" >"$folder/output" 2>&1; then
    cat "$folder/output" >&2
    return 1
  fi
  {
    sed -nE 's/^\{"step":([0-9]+),"loss":([^,]*),.*$/\1 \2/p' "$out/metrics.jsonl"
    (cd "$out/checkpoints/latest" && sha256sum -- *.safetensors)
  } | sha256sum | cut -c1-16
}

different=0
for model in quickstart v3-mini; do
  for strategy in flat shared hierarchical all_gather; do
    for wire in fp32 bf16 fp8; do
      for ranks in 1 2 4; do
        words=("launch/configs/$model.toml" --ranks "$ranks" data="$folder/text" steps=12 train.warmup_steps=4 train.batch=4
          train.eval_batches=1 exchange.strategy="$strategy" exchange.dispatch_format="$wire" log.every=100)
        old=$(digest "$before" "$folder/run" "${words[@]}")
        new=$(digest "$after" "$folder/run" "${words[@]}")
        verdict=equal
        [[ "$old" == "$new" ]] || verdict=DIFFERENT different=$((different + 1))
        echo "$model $strategy $wire $ranks ranks: $old $new $verdict"
      done
    done
  done
done
echo "$different of 72 differ"
((different == 0))
