#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every JSON file that the program writes is valid by its schema in launch/schemas, every schema has a file that is, and
# schemas are strict. Usage: schemas_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

root=$(cd "$(dirname "$0")/../.." && pwd)
python=""
for candidate in /usr/bin/python3 python3; do
  if "$candidate" -c 'import jsonschema' 2>/dev/null; then python=$candidate && break; fi
done
[[ -n "$python" ]] || fail "no python3 with jsonschema: launch/install-packages --tests"

# written SCHEMA FILE WORD...: cadre WORD... writes FILE, which is to be valid by SCHEMA.
written() {
  code=0
  timeout "$time_limit" "$program" "${@:3}" >"$output" 2>&1 || code=$?
  succeeded "${*:3}"
  to_validate "$1" "$2"
}
to_validate() { printf '%s\t%s\n' "$1" "$2" >>"$folder/list"; }

small=(--ranks 2 --tokens 64 --hidden 64 --iterations 2 --warmup 1)
written bench.exchange "$folder/exchange" bench exchange "${small[@]}" --experts 4 --top-k 2 --strategy all --json "$folder/exchange"
written bench.overlap "$folder/overlap" bench overlap "${small[@]}" --json "$folder/overlap"
written bench.layer "$folder/layer" bench layer "${small[@]}" --ffn 32 --experts 4 --top-k 2 --json "$folder/layer"
written bench.layer_workloads "$folder/workloads" bench layer "${small[@]}" --ffn 32 --experts 8 --top-k 2 --workload all --balance host --json "$folder/workloads"
written bench.router "$folder/router" bench router "${small[@]}" --experts 16 --top-k 2 --json "$folder/router"
written bench.permute "$folder/permute" bench permute "${small[@]}" --experts 8 --top-k 2 --json "$folder/permute"
written bench.attention "$folder/attention" bench attention --length 24 --heads 2 --head-dim 6 --value-dim 4 --iterations 1 --json "$folder/attention"
written bench.gemm "$folder/gemm" bench gemm --part all --rows 16 --tokens 5 --out 16 --in 24 --experts 3 --iterations 1 --json "$folder/gemm"
written bench.step "$folder/bench_step" bench step "$folder/run.toml" --ranks 2 --iterations 1 --json "$folder/bench_step"
written plan.dispatch "$folder/dispatch" plan dispatch --tokens 100 --experts 16 --top-k 2 --ranks 4 --hosts 2 --json "$folder/dispatch"
written plan.memory "$folder/memory" plan memory "$folder/run.toml" --ranks 4 --limit 0.01 --json "$folder/memory"
code=0
"$program" plan cluster "$folder/run.toml" --ranks 2 --out "$folder/cluster.toml" >"$output" 2>&1 || code=$?
succeeded "plan cluster"
written plan.step "$folder/step" plan step "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --json "$folder/step"
written plan.search "$folder/search" plan search "$folder/run.toml" --ranks 2 --cluster "$folder/cluster.toml" --json "$folder/search"
for schedule in dualpipe 1f1b zb1p; do
  written schedule "$folder/$schedule" plan schedule --schedule "$schedule" --ranks 4 --micro-batches 8 --json "$folder/$schedule"
done

# Runs with every optional part: further tokens, an evaluation, a pipeline whose ops overlap and steps that run serially.
for rank_grid in "1 1f1b" "2 dualpipev"; do
  read -r pipeline schedule <<<"$rank_grid"
  run=$folder/run$pipeline
  written report "$run/report.json" train "$folder/run.toml" --ranks 2 "out=$run" "parallel.pipeline=$pipeline" \
    "parallel.schedule=$schedule" train.batch=16 train.micro_batches=4 train.steps=4 train.eval_every=2 model.num_hidden_layers=4 \
    model.num_nextn_predict_layers=1 trace.first_step=2 trace.steps=2
  written report "$folder/again" report "$run" --json "$folder/again" --trace "$run/all.json"
  to_validate metrics "$run/metrics.jsonl"
  to_validate manifest "$run/checkpoints/latest/cadre.json"
  for trace in "$run"/trace/rank00000.json "$run"/trace/rank00001.json "$run/all.json"; do to_validate trace "$trace"; done
done
chat=(data.format=conversations data.chat_format=deepseek_v2 model.eos_token_id=0 data.validation_fraction=0.2 train.eval_every=2)
"$root/launch/make-conversations" 40 >"$folder/conversations"
written best "$folder/chat/best.json" train "$folder/run.toml" "${chat[@]}" "data=$folder/conversations" "out=$folder/chat" \
  data.sequence_length=64 train.patience=1
echo '{"prompt": "What is 3 plus 4?", "completion": "7"}' >"$folder/asked"
echo '{"messages": [{"role": "user", "content": "Hi"}]}' >>"$folder/asked"
timeout "$time_limit" "$program" generate "$folder/chat" --chat --conversations "$folder/asked" --max-new 5 2>"$output" >"$folder/answered.jsonl" || fail "chat"
to_validate generate.chat "$folder/answered.jsonl"
timeout "$time_limit" "$program" generate "$folder/run1/checkpoints/latest" --prompt abc --prompt de --max-new 5 --logprobs "$folder/logprobs.jsonl" >"$output" 2>&1 || fail "generate --logprobs"
to_validate generate.logprobs "$folder/logprobs.jsonl"
written bench.generate "$folder/generate" bench generate --model "$folder/run1/checkpoints/latest" --ranks 2 --prompt 9 \
  --max-new 3 --batch 2 --iterations 1 --json "$folder/generate"
written report.diff "$folder/diff" report diff "$folder/run1" "$folder/run2" --json "$folder/diff"
written inspect "$folder/inspect" inspect "$folder/run1" --ranks 2 --json "$folder/inspect"
echo '{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}' >"$folder/dense.json"
written inspect "$folder/inspect-dense" inspect "$folder/dense.json" --json "$folder/inspect-dense"
placement=(plan placement --loads "$folder/run1" --replicas 6 --ranks 2)
written placement "$folder/placement" "${placement[@]}" --json "$folder/placement"
written placement "$folder/moved" "${placement[@]}" --previous "$folder/placement" --json "$folder/moved"
echo '{"weight": [[1, 2, 3]]}' >"$folder/loads.json"
written placement "$folder/odd" plan placement --loads "$folder/loads.json" --ranks 2 --replicas 5 --json "$folder/odd"

"$python" -W ignore - "$root/launch/schemas" "$folder/list" >"$output" 2>&1 <<'END' || fail "not valid"
import copy, json, pathlib, sys

import jsonschema

suffix = ".schema.json"
schemas = {path.name: json.loads(path.read_text()) for path in pathlib.Path(sys.argv[1]).glob("*" + suffix)}
files = [line.rstrip("\n").split("\t") for line in open(sys.argv[2])]
complaints = []


def objects_of(schema, path):
    """Each schema of an object with named keys in `schema`, with its path."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            yield path, schema
        for key, part in schema.items():
            yield from objects_of(part, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from objects_of(part, f"{path}/{index}")


# Keys that a file need not have.
optional = {"manifest": {"updates", "data"}, "bench.gemm": {"rows", "grouped"}, "plan.memory": {"fits", "limit_bytes"}, "trace": {"ts", "dur", "cat", "id", "bp", "args"},
            "schedule": {"back_stage", "back_micro_batch", "rows", "peer", "tag"}}
for name, schema in schemas.items():
    jsonschema.Draft202012Validator.check_schema(schema)
    for path, part in objects_of(schema, name):
        if part.get("additionalProperties") is not False:
            complaints.append(f"{path}: takes keys that it does not name")
        missing = set(part["properties"]) - set(part.get("required", [])) - optional.get(name.removesuffix(suffix), set())
        if missing:
            complaints.append(f"{path}: does not require {sorted(missing)}")


def documents_in(path):
    text = pathlib.Path(path).read_text()
    return [json.loads(line) for line in text.splitlines()] if path.endswith(".jsonl") else [json.loads(text)]


def errors_of(name, document):
    schema = schemas[name + suffix]
    base = "file:///"  # that references between schemas are relative to
    resolver = jsonschema.RefResolver(base + name + suffix, schema, store={base + file: text for file, text in schemas.items()})
    return list(jsonschema.Draft202012Validator(schema, resolver=resolver).iter_errors(document))


for name, path in files:
    for number, document in enumerate(documents_in(path), 1):
        for error in errors_of(name, document)[:3]:
            complaints.append(f"{path}:{number}: {error.json_path}: {error.message[:300]}")
        # A key that appears, or one that disappears, is an error.
        top = document[0] if isinstance(document, list) else document
        for key in list(top) + ["unknown"]:
            changed = copy.copy(top)
            changed.pop(key, None) if key in top else changed.update({key: 1})
            if key not in optional.get(name, set()) and not errors_of(name, [changed] if top is not document else changed):
                complaints.append(f"{name}: valid with another set of keys: {key}")
unused = set(schemas) - {name + suffix for name, path in files}
complaints += [f"{name}: no file was validated" for name in sorted(unused)]
print("\n".join(complaints) or f"{len(files)} files are valid")
sys.exit(bool(complaints))
END
cat "$output"
