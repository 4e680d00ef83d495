#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sends metrics.jsonl of a run to Weights & Biases: metrics-to-wandb.py RUN_DIR [PROJECT]. Again for more steps."""
import json
import pathlib
import sys

import wandb

folder = pathlib.Path(sys.argv[1])
lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
run = wandb.init(project=sys.argv[2] if len(sys.argv) > 2 else "cadre", id=lines[0]["run"], resume="allow",
                 config={"run.toml": (folder / "run.toml").read_text()})
for line in lines:
    values = {key: value for key, value in line.items() if isinstance(value, (int, float)) and key != "step"}
    for layer in line.get("layers", []):
        values |= {f"layer{layer['layer']}/{key}": layer[key] for key in ("expert_cv", "max_vio", "entropy")}
        values[f"layer{layer['layer']}/expert_load"] = wandb.Histogram(
            np_histogram=(layer["counts"], range(len(layer["counts"]) + 1)))
    run.log(values, step=line["step"])
run.finish()
