# SPDX-License-Identifier: Apache-2.0
# load_metrics and score against the files that they read. Usage: files_test.py RUN GOLDEN
import json
import struct
import sys

import numpy as np

import cadre

run, golden = sys.argv[1:]


def test_metrics():
    lines = [json.loads(line) for line in open(f"{run}/metrics.jsonl", encoding="utf-8")]
    steps = [line for line in lines if "loss" in line]
    table = cadre.load_metrics(run)
    assert len(table) == len(steps) == 3
    for name in ("step", "loss", "lr", "tokens", "expert_cv"):
        np.testing.assert_array_equal(table[name], [line[name] for line in steps])
    assert table.dtype["step"] == np.int64 and table.dtype["loss"] == np.float64
    np.testing.assert_array_equal(table["layers.counts"], [[layer["counts"] for layer in line["layers"]] for line in steps])
    assert table["layers.expert_cv"].shape == (3, len(steps[0]["layers"]))
    evaluations = cadre.load_metrics(f"{run}/metrics.jsonl", kind="evaluation")
    wanted = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert wanted and evaluations["validation_loss"].tolist() == wanted
    try:
        import pandas  # noqa: F401
    except ImportError:
        print("pandas is not installed: frames are not tested")
        return
    frame = cadre.load_metrics(run, as_frame=True)
    assert frame["loss"].tolist() == [line["loss"] for line in steps] and "layers.counts" not in frame


def tensor(path, name):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
        file.seek(8 + length + entry["data_offsets"][0])
        kind = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}[entry["dtype"]]
        count = int(np.prod(entry["shape"]))
        return np.frombuffer(file.read(count * int(kind[2])), kind).reshape(entry["shape"])


def test_score():
    expected = f"{golden}/expected.safetensors"
    found = cadre.score(golden, tensor(expected, "tokens"), gradients=True, routing=True)
    np.testing.assert_allclose(found["logits"], tensor(expected, "logits"), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found["loss"].item(), tensor(expected, "loss").item(), rtol=1e-5)
    assert any(name.startswith("grad.") for name in found) and any("topk_indices" in name for name in found)
    try:
        cadre.score(golden, [[10**6, 1]])
    except RuntimeError as error:
        assert "cadre: error:" in str(error) and "\n" not in str(error), error
    else:
        raise AssertionError("an unknown token has a score")


test_metrics()
test_score()
print("passed")
