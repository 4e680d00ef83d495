# SPDX-License-Identifier: Apache-2.0
"""The calls of time_dispatch.cpp from Python.

    mpirun -n 2 python3 time_dispatch.py [STRATEGY]
"""

import statistics
import sys

import numpy as np
from mpi4py import MPI

import cadre

TOKENS, WIDTH, EXPERTS, TOP_K, TIMES = 4096, 2048, 16, 2, 15


def main():
    strategy = sys.argv[1] if len(sys.argv) > 1 else "flat"
    with cadre.Dispatcher(num_experts=EXPERTS, top_k=TOP_K, width=WIDTH, strategy=strategy) as dispatcher:
        x = np.ones((TOKENS, WIDTH), np.float32)
        y = np.zeros_like(x)
        first = 7 * np.arange(TOKENS, dtype=np.int32)
        ids = np.stack([first, first + 5], axis=1) % EXPERTS
        weights = np.full((TOKENS, TOP_K), 0.5, np.float32)
        times = []
        for _ in range(TIMES):
            begin = MPI.Wtime()
            batch = dispatcher.dispatch(x, ids, weights)
            batch.combine(batch.rows, out=y)
            del batch
            times.append((MPI.Wtime() - begin) * 1e3)
        if dispatcher.rank == 0:
            print(f"{statistics.median(times):.2f} ms, {dispatcher.strategy}")


main()
