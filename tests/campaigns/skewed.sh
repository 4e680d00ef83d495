#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A router that stays skewed (Zipf by token id, replayed) on 4 ranks, three runs of STEPS steps: with balanced routing, skewed, and skewed
# with parallel.rebalance=auto. Ranks become even within 20 steps, and every loss is, to the bit, that of the run whose experts
# stay. Prints throughput and stalls; how fast they may be is for a machine that does nothing else to say: MOST_STALL, in % of a
# step, and LEAST_RATE, of the balanced run, make them limits.
# Usage: skewed.sh CADRE WRITE_SKEWED_ROUTING STEPS MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/../launch/common.sh" "$1"

write=$2
steps=$3
launcher=("${@:4}")
words=("train.steps=$steps" train.schedule=constant train.warmup_steps=0 train.eval_every=0 log.every=1000000
  exchange.combine=slot_order train.grad_clip=0.2
  model.n_routed_experts=32 model.bias_update_rate=0 model.aux_loss_alpha=0)
if ((steps > 50)); then
  words+=(model.hidden_size=128 model.num_hidden_layers=4 model.num_attention_heads=4 model.intermediate_size=512
    model.moe_intermediate_size=128 data.sequence_length=128 train.batch=8 model.max_position_embeddings=128)
else
  words+=(model.num_hidden_layers=3 model.moe_intermediate_size=32 data.sequence_length=32 train.batch=32)
fi
cat "$(dirname "$0")"/../../*/README.md "$(dirname "$0")"/../../comm/*/*.cpp >"$folder/text"

# run NAME EXPONENT WORD...
run() {
  if [[ ! -e "$folder/routing.$2" ]]; then
    "$write" "$folder/run.toml" "$folder/routing.$2" "$2" "${words[@]}" || fail "no routing"
  fi
  timeout 900 "${launcher[@]}" -n 4 "$program" train "$folder/run.toml" "${words[@]}" "out=$folder/$1" \
    "train.replay=$folder/routing.$2" "${@:3}" >"$output" 2>&1 || fail "run $1"
}

run balanced 0
run stays 0.8
if ((steps > 50)); then
  run moves 0.8 parallel.rebalance=auto
else
  run moves 0.8 parallel.rebalance=4 trace.first_step=12  # a look that refuses is soon followed by another
  says "moved in step"
fi
says " | moved "

python3 - "$folder" "$steps" "${MOST_STALL:-}" "${LEAST_RATE:-}" <<'END' || fail "not what is promised"
import json, statistics, sys

folder, steps, most_stall, least_rate = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


def read(run):
    rows = [json.loads(line) for line in open(f"{folder}/{run}/metrics.jsonl")]
    rows = [row for row in rows if "validation_loss" not in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1)), run
    return rows


balanced, stays, moves = read("balanced"), read("stays"), read("moves")
assert [row["loss"] for row in moves] == [row["loss"] for row in stays], "other losses than where experts stay"
uneven = [row["device_max_over_mean"] for row in stays]
even = [row["device_max_over_mean"] for row in moves]
assert min(uneven) >= 1.5, f"max/mean of the run that stays: {min(uneven)}"
late = statistics.median(even[19:])  # a step has few tokens, so that single steps are uneven by chance
assert even[0] >= 1.5 and late <= 1.10, f"max/mean {even[0]}, from step 20 on {late}, up to {max(even[19:])}"
assert max(row["device_max_over_mean"] for row in balanced) <= 1.01
moved = [row for row in moves if row["moved_experts"] > 0]
assert moved and all(row["moved_bytes"] > 0 and row["move_gain_ms"] > 0 for row in moved)
looks = [row for row in moves if row["move_got_ms"] is not None]
assert looks and looks[0]["step"] > moved[0]["step"], "no gain was measured"


def median(rows):
    return statistics.median(row["step_ms"] for row in rows[20:] if row["moved_experts"] == 0)


rate = median(balanced) / median(moves)
print(f"max/mean {even[0]:.2f} -> {late:.2f} from step 20 on, at most {max(even[19:]):.2f}; losses equal to the bit; "
      f"tokens/s {rate:.3f} of the balanced run, {median(stays) / median(moves):.3f} of the one that stays")
stalls = []
for row in moved:
    stalls.append(100 * row["rebalance_ms"] / median(moves))
    print(f"step {row['step']}: {row['moved_experts']} experts, {row['moved_bytes'] / 1e6:.1f} MB, stall "
          f"{row['rebalance_ms']:.2f} ms, {stalls[-1]:.1f} % of a step of {median(moves):.1f} ms; that step took "
          f"{row['step_ms']:.1f} ms; gain expected {row['move_gain_ms']:.2f} ms, got {looks[0]['move_got_ms']:.2f}")
print(f"refused: {[(row['step'], row['refused_experts']) for row in moves if row['refused_experts'] > 0]}")
assert not most_stall or max(stalls) <= float(most_stall), "a stall is too long"
assert not least_rate or rate >= float(least_rate), "too slow"
END
