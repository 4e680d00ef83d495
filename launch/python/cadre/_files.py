# SPDX-License-Identifier: Apache-2.0
"""What the program `cadre` writes, as arrays."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

_DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
# Set by mpirun and srun: a child with them would take itself for a rank of this job.
_LAUNCHER_PREFIXES = ("OMPI_COMM_", "OMPI_APP_", "OMPI_UNIVERSE", "PMIX_", "PMI_", "PRTE_", "SLURM_PROCID", "SLURM_STEP")


def load_metrics(run: Union[str, os.PathLike], kind: str = "step", as_frame: bool = False) -> Any:
    """metrics.jsonl of a run (its folder, or the file) as a structured array, one element a line, or as a pandas frame.

    kind: "step" or "evaluation". Fields are the numbers of launch/schemas/metrics.schema.json; what a line does not have, or
    is not finite, is NaN. Numbers of each mixture layer are fields "layers.NAME" of shape [layers], "layers.counts" of
    [layers, experts]; a frame leaves these out.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "metrics.jsonl"
    if kind not in ("step", "evaluation"):
        raise ValueError(f"kind = {kind!r}, allowed: step, evaluation")
    records = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                if not line.endswith("\n"):
                    break  # the last line of a run that was killed, or that writes it now
                raise ValueError(f"{path}:{number}: not JSON") from None
            if ("validation_loss" in record) == (kind == "evaluation"):
                records.append(_flat(record))
    names: List[str] = list(dict.fromkeys(name for record in records for name in record))
    shapes = {name: next(np.shape(record[name]) for record in records if name in record) for name in names}
    whole = {name: all(name in record and np.asarray(record[name]).dtype.kind == "i" for record in records) for name in names}
    table = np.zeros(len(records), [(name, np.int64 if whole[name] else np.float64, shapes[name]) for name in names])
    for i, record in enumerate(records):
        for name in names:
            table[name][i] = record.get(name, np.nan)
    if not as_frame:
        return table
    import pandas

    return pandas.DataFrame({name: table[name] for name in names if not shapes[name]})


def _flat(record: Dict[str, Any]) -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for name, value in record.items():
        if name == "layers" and value:
            for key in value[0]:
                flat[f"layers.{key}"] = np.array([_number(layer[key]) for layer in value])
        elif value is None or isinstance(value, (bool, int, float)):
            flat[name] = _number(value)
    return flat


def _number(value: Any) -> Any:
    return np.nan if value is None else value


def score(checkpoint: Union[str, os.PathLike], tokens: Any, *, gradients: bool = False, routing: bool = False,
          hidden: bool = False, overrides: Sequence[str] = (), program: Optional[str] = None) -> Dict[str, np.ndarray]:
    """What a checkpoint makes of tokens [B,S], computed by `cadre score` as one process.

    Gives logits float32 [B,S,V] and loss float64 [1], the mean of -log p(next token). gradients: grad.NAME of every parameter.
    routing: layers.N.topk_indices and .topk_weights [B S,K]. hidden: layers.N.hidden [B,S,H]. overrides: key=value of the run.
    program: the `cadre` to run; by default $CADRE_PROGRAM, or that in PATH.
    """
    program = program or os.environ.get("CADRE_PROGRAM") or shutil.which("cadre")
    if program is None:
        raise FileNotFoundError("no program cadre in PATH (hint: pass program=, or set CADRE_PROGRAM)")
    ids = np.ascontiguousarray(tokens, dtype="<i8")
    if ids.ndim != 2:
        raise ValueError(f"tokens has shape {list(ids.shape)}, must have [B,S]")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHER_PREFIXES)}
    with tempfile.TemporaryDirectory() as folder:
        _write_tensor(f"{folder}/tokens.safetensors", "tokens", ids)
        command = [program, "score", os.fspath(checkpoint), *overrides, "--tokens", f"{folder}/tokens.safetensors", "--out",
                   f"{folder}/out.safetensors"]
        command += [f"--{name}" for name, wanted in (("grads", gradients), ("routing", routing), ("hidden", hidden)) if wanted]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            text = done.stderr.strip() or done.stdout.strip()
            raise RuntimeError(text.splitlines()[0] if text else f"cadre score ended with code {done.returncode}")
        return _read_tensors(f"{folder}/out.safetensors")


def _write_tensor(path: str, name: str, values: np.ndarray) -> None:
    header = json.dumps({name: {"dtype": "I64", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + values.tobytes())


def _read_tensors(path: str) -> Dict[str, np.ndarray]:
    content = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(content[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return tensors
