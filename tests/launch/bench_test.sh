#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is measured: every benchmark, briefly, and what its JSON holds; the shape of a model and of a dispatch. Usage: bench_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml
checkpoint=$folder/run/checkpoints/latest
on_two_ranks train "$run"
succeeded train
alone inspect "$checkpoint" --ranks 2 --json "$folder/inspect.json"
succeeded inspect
says "parameters" "FLOPs" "memory"
grep -q '"schema": "cadre.inspect/1"' "$folder/inspect.json" || fail "no inspect.json"
cp "$output" "$folder/inspected"
alone inspect "$checkpoint/config.json" --ranks 2
cmp "$output" "$folder/inspected" >&2 || fail "config.json and its checkpoint differ"
# DeepSeek-V3 as published. The last of 16 rows holds most: 4 layers of 4 of 256 experts each, the head, and the module for a
# further token with its copy of the embedding are 4,001,936,640 values of 4 bytes, all but 1,280 of them with gradient and
# two moments. 880,803,840 of them are experts, whose moments two ranks share; of the others one rank of 128 keeps those of the
# embedding, 926,679,040.
alone inspect "$(dirname "$0")/../../launch/configs/v3-671b-shape.json" --ranks 2048 --pipeline 16 --expert 64
succeeded "inspect DeepSeek-V3"
says "671,026,419,200 in all" "37,552,297,472 active" "memory       40962.3 MiB a rank on 2048 ranks" "optimizer 10430.0 MiB"

# What moves rows, measured: every row accounted for, in every strategy, also where ranks play two hosts.
on_two_ranks bench exchange --workload all --tokens 64 --hidden 256 --experts 8 --top-k 3 --iterations 2 --warmup 0 \
  --json "$folder/exchange.json"
succeeded "bench exchange"
says "W0 balanced" "W7 burst" "shared" "hierarchical" "all_gather"
for key in strategy wire workload ranks p50_us p95_us worst_rank_us logical_bytes crossing_bytes wrong \
  speedup_vs_alltoallv ratio_to_memcpy; do
  grep -q "\"$key\"" "$folder/exchange.json" || fail "no $key in exchange.json"
done
on_two_ranks bench exchange --hosts 2 --wire fp8 --tokens 64 --hidden 256 --experts 8 --top-k 3 --iterations 2 --warmup 0
succeeded "bench exchange on two hosts"
on_two_ranks bench generate --model "$checkpoint" --prompt 9 --max-new 3 --batch 3 --iterations 2 --json "$folder/generate.json"
succeeded "bench generate"
says "prefill" "decode" "limit" "2 ranks, 3 texts of 9 + 3 tokens"
grep -q '"share_of_limit": [0-9]' "$folder/generate.json" || fail "no share of the limit"
on_two_ranks bench layer --tokens 64 --hidden 32 --ffn 48 --experts 4 --top-k 2 --iterations 2 --warmup 1 --json "$folder/layer.json"
succeeded "bench layer"
says "gemm floor" "ratio to floor"
grep -q '"ratio_to_floor": [0-9]' "$folder/layer.json" || fail "no ratio to the floor"
for workload in W0 W4 W5 W7; do
  on_two_ranks bench layer --tokens 64 --hidden 32 --ffn 48 --experts 8 --top-k 2 --iterations 4 --warmup 0 --workload "$workload" --json "$folder/$workload.json"
  succeeded "bench layer --workload $workload"
done
says "rows of the busiest rank / mean"
# No token selects an expert of the last rank.
grep -q '"rows_max_over_mean": 2.0' "$folder/W5.json" || fail "W5 leaves no rank without rows"
grep -qE '"rows_max_over_mean": 1\.[0-3]' "$folder/W0.json" || fail "W0 is not balanced"
on_two_ranks bench layer --tokens 1024 --hidden 16 --ffn 16 --experts 8 --top-k 2 --iterations 4 --warmup 0 --workload W2 --balance host --json "$folder/balanced.json"
succeeded "bench layer --balance host"
grep -qE '"rows_max_over_mean": 1\.0([0-2][0-9]*)?,' "$folder/balanced.json" || fail "ranks compute unequal rows"
on_two_ranks bench layer --tokens 1024 --hidden 16 --ffn 16 --experts 8 --top-k 2 --iterations 5 --warmup 0 --workload all --balance host --json "$folder/all.json"
succeeded "bench layer --workload all"
says "W5 zero-expert rank" "busiest / mean"
python3 - "$folder/all.json" <<'END' || fail "workloads are not what they are called"
import json, sys

rows = json.load(open(sys.argv[1]))["workloads"]
assert [(row["workload"], row["balance"]) for row in rows] == [(f"W{i}", "host") for i in range(8)] + [("W0", "none")]
assert rows[0]["over_balanced"] == 1
for row in rows[:8]:
    assert row["rows_max_over_mean"] <= (1.03 if row["workload"] == "W7" else 1.021), row  # of 512 and 2,048 rows
    assert row["rows_over_balanced"] == (0.5 if row["workload"] == "W4" else 1), row
END
on_two_ranks bench step "$folder/run.toml" --iterations 2 --json "$folder/step.json"
succeeded "bench step"
says "best products" "attention gradient"
# The products of 2 sequences of 16 tokens with router [4,16], both experts of a token [3,8,16], the shared one, the dense [3,32,16].
python3 - "$folder/step.json" <<'END' || fail "not the products of the model"
import json, sys

phases = {row["phase"]: row for row in json.load(open(sys.argv[1]))["phases"]}
assert "optimizer" in phases, phases.keys()
expected = {"router": 4 * 16, "experts": 2 * 3 * 8 * 16, "shared experts": 3 * 8 * 16, "dense ffn": 3 * 32 * 16}
for phase, elements in expected.items():
    for suffix in ("", " gradient", " weights"):
        row = phases[phase + suffix]
        assert abs(row["gflop"] - 2e-9 * 2 * 16 * elements) < 1e-13, (phase + suffix, row)
        assert row["floor_ms"] > 0, row
END
on_two_ranks bench router --tokens 64 --hidden 32 --experts 16 --iterations 2 --warmup 1 --json "$folder/router.json"
succeeded "bench router"
says "product" "of its speed"
grep -q '"copied_bytes": 12288' "$folder/router.json" || fail "not the bytes of 64 rows of 24 floats, read and written"
on_two_ranks bench permute --tokens 64 --hidden 32 --experts 8 --top-k 3 --iterations 2 --json "$folder/permute.json"
succeeded "bench permute"
says "gather" "combine" "% of a copy"
for key in gather_ms combine_ms copy_ms gather_percent_of_copy combine_percent_of_copy; do
  grep -q "\"$key\": [0-9]" "$folder/permute.json" || fail "no $key in permute.json"
done
grep -q '"moved_bytes": 32768' "$folder/permute.json" || fail "not the bytes of 64 rows one way and 192 the other"
alone bench gemm --part grouped --tokens 5 --out 16 --in 24 --experts 3 --iterations 2 --json "$folder/gemm.json"
succeeded "bench gemm"
says "3 experts of 5 tokens in one call" "grouped / one"
grep -q '"together"' "$folder/gemm.json" || fail "no grouped products in gemm.json"
on_two_ranks bench overlap --tokens 64 --hidden 128 --iterations 3 --warmup 2 --json "$folder/overlap.json"
succeeded "bench overlap"
says "dispatch alone" "hidden, OSU" "in flight during compute" "0 polls" "20 polls" "200 polls" "thread"
for key in communication_us compute_us serial_us overlapped_us hidden_percent_osu in_flight_during_compute_percent polls poll_us; do
  grep -q "\"$key\"" "$folder/overlap.json" || fail "no $key in overlap.json"
done
alone plan dispatch --tokens 1000 --experts 64 --ranks 16 --hosts 4 --hidden 256
succeeded "plan dispatch"
says "one per host" "hosts a token" "made in"
