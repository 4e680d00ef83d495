#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Event files of a run and of its conversion, read by TensorBoard. Usage: tensorboard_test.sh CADRE. Skipped without Python's
# tensorboard (CADRE_TEST_PYTHON names the interpreter); runtime/event_file_test checks the bytes everywhere.
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

alone train "$folder/run.toml" log.tensorboard=true train.eval_every=2
succeeded train
alone report "$folder/run" --tensorboard "$folder/converted"
succeeded report
says "TensorBoard"
python=${CADRE_TEST_PYTHON:-python3}
# What the example for Weights & Biases sends, to a module that only notes it.
cat >"$folder/wandb.py" <<'END'
class Run:
    def log(self, values, step): print("log", step, values["loss"] if "loss" in values else values["validation_loss"])
    def finish(self): print("finished")
def init(project, id, resume, config): print(project, id, resume, len(config["run.toml"]) > 100); return Run()
def Histogram(np_histogram): assert len(np_histogram[1]) == len(np_histogram[0]) + 1
END
PYTHONPATH=$folder python3 "$(dirname "$0")/../../launch/metrics-to-wandb.py" "$folder/run" >"$output" 2>&1 || fail "metrics-to-wandb.py"
says "cadre $(grep -o '"run":"[0-9a-f]*"' "$folder/run/metrics.jsonl" | head -n 1 | cut -d'"' -f4) allow True" "log 3 " "finished"
"$python" -c 'from tensorboard.backend.event_processing import event_accumulator' 2>/dev/null ||
  { echo "no tensorboard in $python"; exit 77; }
for events in "$folder/run/tensorboard" "$folder/converted"; do
  "$python" - "$folder/run/metrics.jsonl" "$events" >"$output" 2>&1 <<'END' || fail "$events"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

lines = [json.loads(line) for line in open(sys.argv[1])]
steps = [line for line in lines if "loss" in line]
events = EventAccumulator(sys.argv[2], size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
events.Reload()
for tag, key in (("train/loss", "loss"), ("train/learning_rate", "lr"), ("speed/tokens_per_s", "tokens_per_s")):
    got = events.Scalars(tag)
    assert [one.step for one in got] == [line["step"] for line in steps], tag
    for one, line in zip(got, steps):
        assert abs(one.value - line[key]) <= 1e-6 * abs(line[key]), (tag, one, line[key])
        assert abs(one.wall_time - line["time"]) < 1e-3
layer = steps[0]["layers"][0]
name = f"layer{layer['layer']}"
assert abs(events.Scalars(name + "/expert_cv")[0].value - layer["expert_cv"]) < 1e-6
histogram = events.Histograms(name + "/expert_load")[0].histogram_value
assert [int(count) for count in histogram.bucket] == layer["counts"], histogram
assert histogram.num == sum(layer["counts"])
validation = [line for line in lines if "validation_loss" in line]
assert len(validation) >= 2 and len(events.Scalars("validation/loss")) == len(validation)
text = events.Tensors("configuration/text_summary" if "configuration/text_summary" in events.Tags()["tensors"] else "configuration")
assert b"hidden_size = 16" in text[0].tensor_proto.string_val[0]
END
done
