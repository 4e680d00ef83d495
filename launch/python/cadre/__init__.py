# SPDX-License-Identifier: Apache-2.0
"""Cadre from Python: rows of tokens go to the experts that a router chose, on whatever MPI rank those are, and back.

Letters in shapes: T tokens of this rank, K = top_k, H = width, P places of this rank, E experts. A place is one (token, k)
at its expert; places are ordered by (expert, source rank, token).
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._files import load_metrics, score

__all__ = ["Batch", "Dispatcher", "Plan", "load_metrics", "plan", "score"]
__version__ = "0.1.0"

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
# A NumPy array, or anything with DLPack or the buffer protocol, on the host.
Array = Any


def _array(values: Array) -> NDArray[Any]:
    """The same memory where it can be had."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__dlpack__"):
        if getattr(values, "requires_grad", False):
            values = values.detach()
        return np.from_dlpack(values)
    return np.asarray(values)


def _matrix(name: str, values: Array, width: int, count: Optional[int] = None) -> Floats:
    """float32 with rows of adjacent elements; a copy only where `values` are not."""
    matrix = _array(values)
    if matrix.ndim != 2 or matrix.shape[1] != width or (count is not None and matrix.shape[0] != count):
        wanted = f"[{'rows' if count is None else count},{width}]"
        raise ValueError(f"{name} has shape {list(matrix.shape)}, must have {wanted}")
    adjacent = matrix.strides[1] == 4 and matrix.strides[0] % 4 == 0 and matrix.strides[0] >= 4 * width
    if matrix.dtype != np.float32 or not (adjacent or matrix.size == 0):
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    return matrix


def _output(name: str, out: Optional[Array], shape: Tuple[int, int]) -> Floats:
    if out is None:
        return np.empty(shape, np.float32)
    # A torch tensor gives its own memory; DLPack may give it for reading only.
    memory = out.detach().numpy() if hasattr(out, "detach") else _array(out)
    if memory.dtype != np.float32 or memory.shape != shape or (memory.size and memory.strides[1] != 4):
        raise ValueError(f"{name}: expected float32 {list(shape)} with rows of adjacent elements, got {memory.dtype} "
                         f"{list(memory.shape)}")
    return memory


def _ids(values: Array) -> Ints:
    ids = _array(values)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids: expected integers [T,K], got {ids.dtype} {list(ids.shape)}")
    if ids.dtype != np.int32 and ids.size and (ids.max() > 2**31 - 1 or ids.min() < -(2**31)):
        raise ValueError("ids: a value does not fit 32 bits")
    return np.ascontiguousarray(ids, dtype=np.int32)


class Plan:
    """Which rows a rank sends to which rank: an immutable value.

    A row is one token on its way to one rank; it carries the slots, that is the (token, k), whose expert is there. Rows are
    ordered by (destination rank, token).
    """

    def __init__(self, core: _core.Plan) -> None:
        self._core = core
        self.num_ranks: int = core.num_ranks
        self.top_k: int = core.top_k
        self.num_tokens: int = core.num_tokens
        self.num_dropped: int = core.num_dropped  # slots with id -1

    @property
    def row_counts(self) -> NDArray[np.int64]:
        """[ranks] rows for each rank."""
        return np.frombuffer(self._core.row_counts, np.int64)

    @property
    def slot_counts(self) -> NDArray[np.int64]:
        """[ranks] slots for each rank."""
        return np.frombuffer(self._core.slot_counts, np.int64)

    @property
    def row_token(self) -> Ints:
        """[rows] the token of each row."""
        return np.frombuffer(self._core.row_token, np.int32)

    @property
    def row_slots(self) -> Ints:
        """[rows + 1] row r carries slots[row_slots[r]:row_slots[r + 1]]."""
        return np.frombuffer(self._core.row_slots, np.int32)

    @property
    def slots(self) -> Ints:
        """[slots] token * top_k + k."""
        return np.frombuffer(self._core.slots, np.int32)

    @property
    def slot_expert(self) -> Ints:
        """[slots] index of the expert on its rank."""
        return np.frombuffer(self._core.slot_expert, np.int32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._core == other._core

    def __repr__(self) -> str:
        return f"<cadre.Plan\n{self._core.describe()}>"


def plan(ids: Array, num_experts: int, num_ranks: int, rank: int = 0,
         experts_of: Optional[Sequence[Sequence[int]]] = None) -> Plan:
    """The plan for ids [T,K], -1 for none, without communication.

    experts_of[r]: the experts of rank r; None: neighbouring experts together, as even as possible.
    """
    values = _ids(ids)
    return Plan(_core.make_plan(values, values.shape[1], num_experts, num_ranks, rank,
                                [list(experts) for experts in experts_of or []]))


class Batch:
    """The tokens of one dispatch at the experts of this rank. Its methods are collective."""

    def __init__(self, core: _core.Batch, width: int) -> None:
        self._core = core
        self._width = width
        self.plan = Plan(core.plan)
        #: [P,H] rows at the experts: a writable view of memory that the batch owns.
        self.rows: Floats = np.asarray(core.rows)
        #: [local experts + 1]: expert i of this rank works on rows[expert_offsets[i]:expert_offsets[i + 1]].
        self.expert_offsets: Ints = np.frombuffer(core.expert_offsets, np.int32)
        #: [P] the weight of each place.
        self.weights: Floats = np.frombuffer(core.weights, np.float32)

    def combine(self, results: Array, out: Optional[Array] = None) -> Floats:
        """results [P,H] -> y [T,H]: y_t = sum over the places p of token t of weight_p results_p."""
        y = _output("out", out, (self.plan.num_tokens, self._width))
        self._core.combine(_matrix("results", results, self._width, len(self.rows)), y)
        return y

    def combine_backward(self, dy: Array, results: Optional[Array] = None,
                         out: Optional[Array] = None) -> Union[Floats, Tuple[Floats, Floats]]:
        """dy [T,H] -> d_results [P,H]; with results [P,H] also d_weights [T,K], 0 where there is no expert.

        All ranks pass results, or none does.
        """
        gradient = _matrix("dy", dy, self._width, self.plan.num_tokens)
        d_results = _output("out", out, (len(self.rows), self._width))
        if results is None:
            self._core.combine_backward(gradient, d_results)
            return d_results
        d_weights = np.empty((self.plan.num_tokens, self.plan.top_k), np.float32)
        self._core.combine_backward(gradient, _matrix("results", results, self._width, len(self.rows)), d_results,
                                    d_weights)
        return d_results, d_weights

    def dispatch_backward(self, d_rows: Array, out: Optional[Array] = None) -> Floats:
        """d_rows [P,H] -> dx [T,H], the sum over the places of each token."""
        dx = _output("out", out, (self.plan.num_tokens, self._width))
        self._core.dispatch_backward(_matrix("d_rows", d_rows, self._width, len(self.rows)), dx)
        return dx


class Dispatcher:
    """Moves rows of tokens between the ranks of an mpi4py communicator. Its methods are collective, in the same order on all ranks.

    num_experts: of all ranks. top_k: columns of ids. width: H. max_tokens: of one dispatch on any rank; more work too.
    strategy: auto, flat, all_gather, shared or hierarchical. dispatch_wire, combine_wire: fp32, bf16 or fp8, what rows are
    rounded to while they travel. sums: partial (one sum per token and rank returns) or slots (bits of y do not depend on where
    experts are). experts_of[r]: the experts of rank r; None: neighbours together. threads: that gather and add rows.
    deadline_seconds: of one wait for other ranks.
    """

    def __init__(self, comm: Any = None, *, num_experts: int, top_k: int, width: int, max_tokens: int = 4096,
                 strategy: str = "auto", dispatch_wire: str = "fp32", combine_wire: str = "fp32", sums: str = "partial",
                 experts_of: Optional[Sequence[Sequence[int]]] = None, threads: int = 1,
                 deadline_seconds: float = 120.0) -> None:
        from mpi4py import MPI

        theirs = MPI.Get_library_version().split(",")[0].strip()
        ours = _core.mpi_library().split(",")[0].strip()
        if theirs != ours:
            raise ImportError(f"mpi4py uses {theirs}, Cadre was built with {ours} (hint: pip install --no-binary mpi4py "
                              "mpi4py with the mpicc of that MPI first in PATH)")
        self._core = _core.Dispatcher((MPI.COMM_WORLD if comm is None else comm).py2f(), num_experts, top_k, width,
                                      max_tokens, strategy, dispatch_wire, combine_wire, sums,
                                      [list(experts) for experts in experts_of or []], threads, deadline_seconds)
        self.width = width
        self.top_k = top_k
        self.num_experts = num_experts
        self.rank: int = self._core.rank
        self.num_ranks: int = self._core.num_ranks
        self.experts: List[int] = self._core.experts  #: of this rank, ascending
        self.strategy: str = self._core.strategy  #: in use, and why

    def dispatch(self, x: Array, ids: Array, weights: Array) -> Batch:
        """x [T,H], ids [T,K] (-1 for none), weights [T,K] -> the rows of this rank's experts."""
        rows = _matrix("x", x, self.width)
        chosen = _ids(ids)
        shares = np.ascontiguousarray(_array(weights), dtype=np.float32)
        wanted = (rows.shape[0], self.top_k)
        if chosen.shape != wanted or shares.shape != wanted:
            raise ValueError(f"ids has shape {list(chosen.shape)} and weights {list(shares.shape)}, must have {list(wanted)}")
        return Batch(self._core.dispatch(rows, chosen, shares), self.width)

    def close(self) -> None:
        """Collective: frees what MPI shares. Drop batches before; without close() it is freed when the process ends."""
        self._core.close()

    def __enter__(self) -> "Dispatcher":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.close()
