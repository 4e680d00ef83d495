# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine as differentiable functions of torch tensors on the CPU.

    moe = MixtureOfExperts(dispatcher, experts)   # experts: modules, one for each of dispatcher.experts
    y = moe(x, ids, weights)                      # x [T,H], ids [T,K], weights [T,K] -> y [T,H]

Forward and backward are collective: every rank calls both, the same number of times.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence, Tuple

import numpy as np
import torch

from . import Batch, Dispatcher


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        ctx.batch = batch
        ctx.set_materialize_grads(True)
        return torch.from_numpy(batch.rows)

    @staticmethod
    def backward(ctx: Any, d_rows: torch.Tensor) -> Tuple[torch.Tensor, None]:
        return torch.from_numpy(ctx.batch.dispatch_backward(d_rows)), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, results: torch.Tensor, weights: torch.Tensor, batch: Batch) -> torch.Tensor:
        ctx.batch = batch
        ctx.save_for_backward(results)
        return torch.from_numpy(batch.combine(results.detach()))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:
        (results,) = ctx.saved_tensors
        d_results, d_weights = ctx.batch.combine_backward(dy, results)
        return torch.from_numpy(d_results), torch.from_numpy(d_weights), None


def dispatch(dispatcher: Dispatcher, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Tuple[torch.Tensor, Batch]:
    """x [T,H], ids [T,K], weights [T,K] -> rows [P,H], with the gradient of x, and the batch for combine()."""
    batch = dispatcher.dispatch(x.detach(), ids, weights.detach())
    return _Dispatch.apply(x, batch), batch


def combine(batch: Batch, results: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """results [P,H] and the weights [T,K] of dispatch() -> y [T,H], with the gradients of both."""
    return _Combine.apply(results, weights, batch)


class MixtureOfExperts(torch.nn.Module):
    """The experts of this rank behind a dispatcher. Without a place an expert still takes part, so it gets a zero gradient."""

    def __init__(self, dispatcher: Dispatcher, experts: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        super().__init__()
        if len(experts) != len(dispatcher.experts):
            raise ValueError(f"{len(experts)} experts for the {len(dispatcher.experts)} of rank {dispatcher.rank}")
        self.dispatcher = dispatcher
        self.experts = torch.nn.ModuleList(experts)

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows, batch = dispatch(self.dispatcher, x, ids, weights)
        counts = np.diff(batch.expert_offsets).tolist()
        parts = [expert(part) for expert, part in zip(self.experts, rows.split(counts))]
        results = torch.cat(parts) if parts else rows
        return combine(batch, results, weights)
