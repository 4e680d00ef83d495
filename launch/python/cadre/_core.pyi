from typing import List, Sequence, overload

from typing_extensions import Buffer

class View(Buffer): ...

class Plan:
    num_ranks: int
    top_k: int
    num_tokens: int
    num_rows: int
    num_slots: int
    num_dropped: int
    row_counts: bytes
    slot_counts: bytes
    row_token: bytes
    row_slots: bytes
    slots: bytes
    slot_expert: bytes
    def describe(self) -> str: ...

class Batch:
    rows: View
    expert_offsets: bytes
    weights: bytes
    plan: Plan
    def combine(self, results: Buffer, y: Buffer) -> None: ...
    @overload
    def combine_backward(self, dy: Buffer, d_results: Buffer) -> None: ...
    @overload
    def combine_backward(self, dy: Buffer, results: Buffer, d_results: Buffer, d_weights: Buffer) -> None: ...
    def dispatch_backward(self, d_rows: Buffer, dx: Buffer) -> None: ...

class Dispatcher:
    rank: int
    num_ranks: int
    experts: List[int]
    strategy: str
    def __init__(self, fortran_comm: int, num_experts: int, top_k: int, width: int, max_tokens: int, strategy: str,
                 dispatch_wire: str, combine_wire: str, sums: str, experts_of: Sequence[Sequence[int]], threads: int,
                 deadline_seconds: float) -> None: ...
    def dispatch(self, x: Buffer, ids: Buffer, weights: Buffer) -> Batch: ...
    def close(self) -> None: ...

def version() -> int: ...
def mpi_library() -> str: ...
def make_plan(ids: Buffer, top_k: int, num_experts: int, num_ranks: int, rank: int,
              experts_of: Sequence[Sequence[int]]) -> Plan: ...
