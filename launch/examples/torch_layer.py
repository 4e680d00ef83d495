# SPDX-License-Identifier: Apache-2.0
"""A mixture layer of torch whose experts are spread over the ranks, with its gradients.

    mpirun -n 4 python3 torch_layer.py

Each rank has 32 tokens and some of 8 experts; a router picks 2 for each token. Prints how far outputs and gradients are from
those of the same layer on one process, and fails where that is more than 1e-6.
"""

import sys

import torch
from mpi4py import MPI

import cadre
from cadre.torch import MixtureOfExperts

EXPERTS, TOP_K, TOKENS, WIDTH = 8, 2, 32, 16


def make_expert(e):
    torch.manual_seed(1000 + e)  # the same on all ranks
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.GELU(), torch.nn.Linear(2 * WIDTH, WIDTH))


def route(x, gate):
    weights, ids = torch.softmax(x @ gate, dim=1).topk(TOP_K, dim=1)
    return ids, weights / weights.sum(1, keepdim=True)


def dense_layer(x, gate, experts):
    ids, weights = route(x, gate)
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        token, k = torch.where(ids == e)
        y = y.index_add(0, token, weights[token, k, None] * expert(x[token]))
    return y


def main():
    comm = MPI.COMM_WORLD
    torch.manual_seed(7)
    gate_values = torch.randn(WIDTH, EXPERTS)
    tokens = torch.randn(comm.size, TOKENS, WIDTH)
    with cadre.Dispatcher(comm, num_experts=EXPERTS, top_k=TOP_K, width=WIDTH, max_tokens=TOKENS) as dispatcher:
        x = tokens[comm.rank].clone().requires_grad_()
        gate = gate_values.clone().requires_grad_()
        layer = MixtureOfExperts(dispatcher, [make_expert(e) for e in dispatcher.experts])
        y = layer(x, *route(x, gate))
        (y**2).mean().backward()
        gate_grad = torch.from_numpy(comm.allreduce(gate.grad.numpy()))  # of the tokens of all ranks

        # The same on this rank alone, for the tokens of all.
        alone_x = tokens.clone().requires_grad_()
        alone_gate = gate_values.clone().requires_grad_()
        alone = torch.nn.ModuleList(make_expert(e) for e in range(EXPERTS))
        losses, ys = 0.0, []
        for part in alone_x:
            ys.append(dense_layer(part, alone_gate, alone))
            losses = losses + (ys[-1] ** 2).mean()
        losses.backward()

        pairs = [(y, ys[comm.rank]), (x.grad, alone_x.grad[comm.rank]), (gate_grad, alone_gate.grad)]
        for e, expert in zip(dispatcher.experts, layer.experts):
            pairs += [(p.grad, q.grad) for p, q in zip(expert.parameters(), alone[e].parameters())]
        error = max(float((a - b).detach().abs().max()) for a, b in pairs)
        print(f"rank {comm.rank}: {len(pairs)} tensors, largest error {error:.1e}")
        del y, pairs  # batches go before the dispatcher
    return 0 if comm.allreduce(error, MPI.MAX) <= 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
