#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains 12 steps of quickstart and v3-mini with two builds of the program, for every strategy, wire and number of ranks, and
# compares all files of the run folders bit for bit: of metrics.jsonl without the fields that time, of the rest every byte.
# Usage: equal.sh BEFORE AFTER
set -euo pipefail

before=$1 after=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$(dirname "$0")/../.."
cat ./README.md ./*/README.md >"$folder/text"
timed='"(time|run|[a-z_]*_ms(_(max|mean))?|tokens_per_s|polls_per_exchange)":[^,}]*,?'

# sums PROGRAM FILE WORD...: trains, and writes a checksum and a name a line for each file of the run to FILE.
sums() {
  local program=$1 file=$2 out=$folder/run
  rm -rf "$out"
  if ! "$program" train "${@:3}" out="$out" >"$folder/output" 2>&1; then
    cat "$folder/output" >&2
    return 1
  fi
  sed -i -E "s/$timed//g" "$out/metrics.jsonl"
  (($(grep -c '"loss":' "$out/metrics.jsonl") >= 12)) || return 1
  (cd "$out" && find . -type f | LC_ALL=C sort | xargs sha256sum) >"$file"
  (($(grep -c safetensors "$file") >= 2)) || return 1
}

different=0 runs=0
for model in quickstart v3-mini; do
  for strategy in flat shared hierarchical all_gather; do
    for wire in fp32 bf16 fp8; do
      for ranks in 1 2 4; do
        words=("launch/configs/$model.toml" --ranks "$ranks" data="$folder/text" steps=12 train.warmup_steps=4 train.batch=4
          train.eval_batches=1 exchange.strategy="$strategy" exchange.dispatch_format="$wire" log.every=100)
        sums "$before" "$folder/before" "${words[@]}"
        sums "$after" "$folder/after" "${words[@]}"
        verdict=equal
        if ! changed=$(diff "$folder/before" "$folder/after"); then
          verdict="DIFFERENT: $(sed -n 's/^[<>] [0-9a-f]* *//p' <<<"$changed" | sort -u | tr '\n' ' ')"
          different=$((different + 1))
        fi
        runs=$((runs + 1))
        hashes=$(for side in before after; do sha256sum <"$folder/$side" | cut -c1-16; done | tr '\n' ' ')
        echo "$model $strategy $wire $ranks ranks, $(wc -l <"$folder/after") files: $hashes$verdict"
      done
    done
  done
done
echo "$different of $runs differ"
((different == 0))
