"""all_reduce and reduce_scatter: every algorithm gives the bits of one process in its order."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm.algorithms.ring import chunk_counts
from pycomm.transport.threads import run_threads
from pycomm.types import DTYPES, resolve_op

from . import harness
from .harness import name, options, portable
from .reference import CASES, DTYPE_NAMES, ORDERS, in_order, random_inputs, rank_order, ring_order

RANKS = range(1, 7)
UNEVEN = {"mixed": (0, 5, 1, 0, 7, 2), "none": (0,) * 6, "one": (0, 0, 9, 0, 0, 0)}

all_reduces = pytest.mark.parametrize("algorithm", portable("all_reduce"), ids=name)
reduce_scatters = pytest.mark.parametrize("algorithm", portable("reduce_scatter"), ids=name)


def check(algorithm, ranks, count, cases, delays=None, **options):
    """All-reduce every case on `ranks` threads and compare the bytes on each with the reference."""
    counts = chunk_counts(count, ranks)
    inputs = [random_inputs(ranks, count, dtype) for dtype, _ in cases]

    def body(transport, rank):
        pairs = zip(cases, inputs, strict=True)
        return [
            harness.all_reduce(algorithm.run, transport, x[rank], op, **options)
            for (_, op), x in pairs
        ]

    results = run_threads(ranks, body, delays=delays)
    for i, (dtype, op) in enumerate(cases):
        expected = ORDERS[algorithm.order](inputs[i], counts, dtype, op)
        for rank in range(ranks):
            assert results[rank][i].tobytes() == expected.tobytes(), (dtype.name, op, rank)


@all_reduces
@pytest.mark.parametrize("count", [0, 1, 2, 7, 13, 64])
@pytest.mark.parametrize("ranks", RANKS)
def test_all_reduce_every_operation(algorithm, ranks, count):
    check(algorithm, ranks, count, CASES)


@all_reduces
@pytest.mark.parametrize("ranks", RANKS)
def test_all_reduce_many_segments(algorithm, ranks):
    cases = [(DTYPES[d], op) for d, op in zip(DTYPE_NAMES, _last_ops(), strict=True)]
    check(algorithm, ranks, 65537, cases, **options(algorithm, 1 << 14))


def _last_ops():
    """Return the operation of each dtype that shows a wrong order best: avg where it exists."""
    names = {"float": "avg", "integer": "sum", "bool": "bxor"}
    return [resolve_op(names[DTYPES[d].family], DTYPES[d]) for d in DTYPE_NAMES]


@all_reduces
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("segment_bytes", [1, 12, 100])
def test_all_reduce_delayed(algorithm, seed, segment_bytes):
    cases = [(DTYPES[d], resolve_op("sum", DTYPES[d])) for d in ("float32", "bfloat16")]
    check(algorithm, 4, 33, cases, delays=seed, **options(algorithm, segment_bytes))


@reduce_scatters
@pytest.mark.parametrize("shape", UNEVEN)
@pytest.mark.parametrize("ranks", RANKS)
def test_reduce_scatter_uneven(algorithm, ranks, shape):
    counts = UNEVEN[shape][:ranks]
    inputs = [random_inputs(ranks, sum(counts), dtype) for dtype, _ in CASES]
    originals = [[x.copy() for x in case] for case in inputs]

    def body(transport, rank):
        return [
            harness.reduce_scatter(algorithm.run, transport, x[rank], counts, op, segment_bytes=8)
            for x, (_, op) in zip(inputs, CASES, strict=True)
        ]

    results = run_threads(ranks, body, delays=ranks if shape == "one" else None)
    for i, (dtype, op) in enumerate(CASES):
        expected = ORDERS[algorithm.order](inputs[i], counts, dtype, op)
        got = np.concatenate([result[i] for result in results])
        assert got.tobytes() == expected.tobytes(), (dtype.name, op)
    for case, original in zip(inputs, originals, strict=True):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(case, original, strict=True))


@reduce_scatters
def test_reduce_scatter_large(algorithm):
    dtype, counts = DTYPES["float16"], (40000, 0, 25537)
    inputs = random_inputs(3, sum(counts), dtype)
    op = resolve_op("avg", dtype)
    results = run_threads(
        3, lambda t, rank: harness.reduce_scatter(algorithm.run, t, inputs[rank], counts, op)
    )
    expected = ORDERS[algorithm.order](inputs, counts, dtype, op)
    assert np.concatenate(results).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype_name", ["float64", "float32", "float16", "bfloat16"])
def test_orders_can_be_told_apart(dtype_name):
    """The references differ where order matters, so the tests above would see a wrong one."""
    dtype = DTYPES[dtype_name]
    op, counts = resolve_op("sum", dtype), chunk_counts(65537, 4)
    inputs = random_inputs(4, 65537, dtype)
    assert rank_order(inputs, counts, dtype, op).tobytes() != (
        ring_order(inputs, counts, dtype, op).tobytes()
    )


def test_the_orders_by_hand():
    """2^24 + 1 is 2^24 in float32: only in ring order do the two ones of chunk 1 meet first."""
    dtype = DTYPES["float32"]
    op = resolve_op("sum", dtype)
    inputs = [np.full(3, v, np.float32) for v in (1.0, 2.0**24, 1.0)]
    assert rank_order(inputs, (1, 1, 1), dtype, op).tolist() == [2.0**24] * 3
    assert ring_order(inputs, (1, 1, 1), dtype, op).tolist() == [2.0**24, 2.0**24 + 2, 2.0**24]


def test_integers_are_exact_in_any_order():
    dtype = DTYPES["int32"]
    inputs = random_inputs(5, 100, dtype)
    op = resolve_op("sum", dtype)
    assert (in_order(inputs, dtype, op) == np.sum(inputs, axis=0, dtype=np.int32)).all()
    assert (in_order(inputs[::-1], dtype, op) == in_order(inputs, dtype, op)).all()


def test_narrow_partials_round_once():
    """In bfloat16 256 + 1 is 256; partial sums in float32 keep the ones, on the wire too."""
    dtype = DTYPES["bfloat16"]
    inputs = [np.array([v], "float32") for v in (256.0, 1.0, 1.0, 0.0)]
    inputs = [x.astype(random_inputs(1, 1, dtype)[0].dtype) for x in inputs]
    for algorithm in portable("all_reduce"):
        op = resolve_op("sum", dtype)
        got = run_threads(
            4, lambda t, r, a=algorithm, o=op: harness.all_reduce(a.run, t, inputs[r], o)
        )
        assert [float(x[0]) for x in got] == [258.0] * 4
