# SPDX-License-Identifier: Apache-2.0
# The Python dispatcher against NumPy, on the ranks at hand: mpirun -n 4 python3 dispatcher_test.py
import gc
import sys
import traceback

import numpy as np
from mpi4py import MPI

import cadre

comm = MPI.COMM_WORLD
RANK, RANKS = comm.rank, comm.size
K, H = 3, 20
E = 2 * RANKS + 1


def tokens_of(rank):
    """Of any rank, so that each can compute what the others send."""
    random = np.random.default_rng(rank)
    count = 0 if rank == 1 else 6 + rank
    x = random.integers(-8, 8, (count, H)).astype(np.float32)
    ids = np.array([random.permutation(E)[:K] for _ in range(count)], np.int32).reshape(count, K)
    ids[random.random((count, K)) < 0.2] = -1
    weights = random.integers(1, 5, (count, K)).astype(np.float32) / 4
    dy = random.integers(-4, 4, (count, H)).astype(np.float32)
    return x, ids, weights, dy


def expert(e, rows):
    return (e + 1) * rows + e


def run_experts(dispatcher, batch, rows, gradient=False):
    results = np.empty_like(rows)
    for i, e in enumerate(dispatcher.experts):
        part = slice(batch.expert_offsets[i], batch.expert_offsets[i + 1])
        results[part] = (e + 1) * rows[part] if gradient else expert(e, rows[part])
    return results


def expected(x, ids, weights, dy):
    y, dx, dw = np.zeros_like(x), np.zeros_like(x), np.zeros_like(weights)
    for t, k in np.argwhere(ids >= 0):
        out = expert(ids[t, k], x[t])
        y[t] += weights[t, k] * out
        dx[t] += weights[t, k] * (ids[t, k] + 1) * dy[t]
        dw[t, k] = dy[t] @ out
    return y, dx, dw


def make(**options):
    return cadre.Dispatcher(comm, num_experts=E, top_k=K, width=H, max_tokens=32, **options)


def test_layer_and_gradients_equal_numpy():
    x, ids, weights, dy = tokens_of(RANK)
    y, dx, dw = expected(x, ids, weights, dy)
    assert RANK == 1 or (np.abs(y).max() > 0 and (ids < 0).any()), "the fixture is trivial"
    for strategy in ("auto", "flat", "all_gather", "hierarchical"):
        for sums in ("partial", "slots"):
            with make(strategy=strategy, sums=sums) as dispatcher:
                batch = dispatcher.dispatch(x, ids, weights)
                results = run_experts(dispatcher, batch, batch.rows)
                np.testing.assert_array_equal(batch.combine(results), y, strategy)
                d_results, d_weights = batch.combine_backward(dy, results)
                np.testing.assert_array_equal(d_weights, dw, strategy)
                d_rows = run_experts(dispatcher, batch, d_results, gradient=True)
                np.testing.assert_array_equal(batch.dispatch_backward(d_rows), dx, strategy)
                np.testing.assert_array_equal(batch.combine_backward(dy), d_results)
                batch.dispatch_backward(d_rows)
                del batch


def test_rows_are_in_expert_order():
    with make(strategy="flat") as dispatcher:
        x, ids, weights, _ = tokens_of(RANK)
        batch = dispatcher.dispatch(x, ids, weights)
        wanted, shares = [], []
        for e in dispatcher.experts:
            for source in range(RANKS):
                xs, others, ws, _ = tokens_of(source)
                for t, k in np.argwhere(others == e):
                    wanted.append(xs[t])
                    shares.append(ws[t, k])
        np.testing.assert_array_equal(batch.rows, np.array(wanted, np.float32).reshape(-1, H))
        np.testing.assert_array_equal(batch.weights, np.array(shares, np.float32))
        assert batch.expert_offsets[-1] == len(wanted)
        assert len(dispatcher.experts) == len(batch.expert_offsets) - 1
        del batch


def test_views_strides_and_other_types():
    x, ids, weights, dy = tokens_of(RANK)
    y = expected(x, ids, weights, dy)[0]
    wide = np.full((len(x), H + 3), 99, np.float32)
    wide[:, :H] = x
    with make(strategy="flat") as dispatcher:
        for rows in (wide[:, :H], x.astype(np.float64), np.asfortranarray(x)):
            batch = dispatcher.dispatch(rows, ids.astype(np.int64), weights.astype(np.float64))
            out = np.full((len(x), H + 2), -5, np.float32)
            given = batch.combine(run_experts(dispatcher, batch, batch.rows), out=out[:, :H])
            np.testing.assert_array_equal(out[:, :H], y)
            assert given.base is out or given.size == 0
            assert (out[:, H:] == -5).all(), "written between the rows"
            batch.rows[...] = 0  # writable, and the memory of the batch
            assert not batch.combine(batch.rows).any()
            del batch, given


def test_views_outlive_batches_and_dispatchers():
    x, ids, weights, _ = tokens_of(RANK)
    dispatcher = make(strategy="flat")
    batch = dispatcher.dispatch(x, ids, weights)
    rows, copy = batch.rows, batch.rows.copy()
    del dispatcher, batch
    gc.collect()
    np.testing.assert_array_equal(rows, copy)
    comm.barrier()


def test_subcommunicators():
    part = comm.Split(RANK % 2, RANK)
    with cadre.Dispatcher(part, num_experts=part.size, top_k=1, width=2) as dispatcher:
        assert (dispatcher.rank, dispatcher.num_ranks) == (part.rank, part.size)
        target = (part.rank + 1) % part.size
        batch = dispatcher.dispatch([[RANK, 1.0]], [[target]], [[1.0]])
        source = part.allgather(RANK)[(part.rank - 1) % part.size]
        np.testing.assert_array_equal(batch.rows, [[source, 1]])
        batch.combine(batch.rows)
        del batch
    part.Free()


def test_plans():
    plan = cadre.plan([[1, 0], [3, 0]], num_experts=4, num_ranks=2)
    assert plan.row_counts.tolist() == [2, 1] and plan.slot_counts.tolist() == [3, 1]
    assert plan.row_token.tolist() == [0, 1, 1] and plan.row_slots.tolist() == [0, 2, 3, 4]
    assert plan.slots.tolist() == [0, 1, 3, 2] and plan.slot_expert.tolist() == [1, 0, 0, 1]
    assert plan != cadre.plan([[1, 0], [3, 0]], 4, 2, experts_of=[[0, 1, 2], [3]])
    x, ids, weights, _ = tokens_of(RANK)
    with make(strategy="flat") as dispatcher:
        batch = dispatcher.dispatch(x, ids, weights)
        assert batch.plan == cadre.plan(ids, E, RANKS, RANK)
        batch.combine(batch.rows)
        del batch


def raises(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error) and "\n" not in str(error), f"{error} does not say {text}"
        return
    raise AssertionError(f"no {kind.__name__} that says {text}")


def test_refusals():
    x, ids, weights, _ = tokens_of(0)
    with make(strategy="flat") as dispatcher:
        raises(ValueError, "x has shape", lambda: dispatcher.dispatch(x[:, 1:], ids, weights))
        raises(ValueError, "ids has shape", lambda: dispatcher.dispatch(x, ids[1:], weights))
        raises(ValueError, "ids: expected integers", lambda: dispatcher.dispatch(x, ids * 1.0, weights))
        raises(ValueError, "does not fit 32 bits", lambda: dispatcher.dispatch(x, ids + 2**40, weights))
        unknown = ids.copy()
        unknown[0, 0] = E
        raises(ValueError, str(E), lambda: dispatcher.dispatch(x, unknown, weights))
        x, ids, weights, _ = tokens_of(RANK)
        batch = dispatcher.dispatch(x, ids, weights)
        raises(ValueError, "results has shape", lambda: batch.combine(batch.rows[:, 1:]))
        raises(ValueError, "out: expected float32", lambda: batch.combine(batch.rows, out=np.empty((len(x), H))))
        batch.combine(batch.rows)
        del batch
    raises(RuntimeError, "closed", lambda: dispatcher.dispatch(x, ids, weights))
    raises(ValueError, "allowed: fp32, bf16, fp8", lambda: make(dispatch_wire="fp4"))
    raises(ValueError, "auto | flat | shared", lambda: make(strategy="fast"))
    raises(ValueError, "top_k = 9", lambda: cadre.Dispatcher(comm, num_experts=2, top_k=9, width=1))


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            comm.barrier()
            if RANK == 0:
                print(f"{name}: passed on {RANKS} ranks")


try:
    main()
except BaseException:  # a rank that ends alone would leave the others waiting
    traceback.print_exc()
    sys.stderr.flush()
    comm.Abort(1)
