"""A user's operations on all ranks: NumPy's bits on every path, and ranks that disagree."""

from __future__ import annotations

import numpy as np
import pytest

import pycomm
from pycomm.algorithms.registry import algorithms
from pycomm.algorithms.ring import chunk_counts
from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES
from tests.user_ops import CASES, differ, in_order, inputs, max_abs, mixed

SIZES = "uint8 float8_e4m3fn float16 bfloat16 int32 float32 float64 complex128".split()
FEW = [(f, g, d) for f, g, d in CASES if f is differ or (f is mixed and d.name in SIZES)]
"""Numbers of all sizes, and those that NumPy itself has not; tests/kernels has all of CASES."""
COUNTS = (0, 1, 18, 19, 1009, 70_001)
"""18 elements of float32 are the most that fit a line of the board; 70 001 go in segments."""


@pytest.mark.parametrize(("fn", "same", "dtype"), FEW, ids=lambda v: getattr(v, "name", None))
@pytest.mark.parametrize("symmetric", [False, True], ids=["ordinary", "symmetric"])
def test_all_reduce_folds_in_rank_order(comm, fn, same, dtype, symmetric):
    op = pycomm.reduce_op(fn)
    for count in COUNTS:
        parts = inputs(fn, comm.size, count, dtype)
        x = comm.empty(count, numpy_dtype(dtype)) if symmetric else parts[comm.rank].copy()
        x[:] = parts[comm.rank]
        assert comm.all_reduce(x, op, order="rank") is x
        assert x.tobytes() == in_order(parts, dtype, same).tobytes(), count


def test_large_arrays_take_the_same_bits_on_every_path(comm):
    op, count = pycomm.reduce_op(mixed), 1_000_003
    parts = [
        np.random.default_rng(r).normal(0, 1, count).astype(np.float32) for r in range(comm.size)
    ]
    total = in_order(parts, DTYPES["float32"], mixed).tobytes()
    ordinary, symmetric = np.empty(count, np.float32), comm.empty(count)
    for x in (ordinary, symmetric, (ordinary, symmetric)[comm.rank % 2]):
        x[:] = parts[comm.rank]
        comm.all_reduce(x, op, order="rank")
        assert x.tobytes() == total


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float32", "int16"])
@pytest.mark.parametrize("algorithm", algorithms("all_reduce"), ids=lambda a: a.name)
def test_every_all_reduce(comm, algorithm, name):
    dtype, op = DTYPES[name], pycomm.reduce_op(mixed)
    for count in (0, 1, 1009, 300_001):
        parts = inputs(mixed, comm.size, count, dtype)
        x = parts[comm.rank].copy()
        try:
            comm.all_reduce(x, op, algorithm=algorithm.name)
        except pycomm.ArgumentError as error:  # "direct" without shared memory, on every rank
            pytest.skip(str(error))
        expected = _expected(parts, algorithm.order)
        assert x.tobytes() == expected.tobytes(), count


@pytest.mark.parametrize("algorithm", algorithms("reduce_scatter"), ids=lambda a: a.name)
@pytest.mark.parametrize("symmetric", [False, True], ids=["ordinary", "symmetric"])
def test_every_reduce_scatter(comm, algorithm, symmetric):
    dtype, op = DTYPES["float16"], pycomm.reduce_op(mixed)
    for count in (0, 1, 1009, 100_000):
        parts = inputs(mixed, comm.size, comm.size * count, dtype)
        x = comm.empty(comm.size * count, "float16") if symmetric else parts[comm.rank].copy()
        x[:] = parts[comm.rank]
        try:
            chunk = comm.reduce_scatter(x, op, algorithm=algorithm.name)
        except pycomm.ArgumentError as error:
            pytest.skip(str(error))
        expected = _expected(parts, algorithm.order)[comm.rank * count : (comm.rank + 1) * count]
        assert chunk.tobytes() == expected.tobytes(), count


@pytest.mark.parametrize("algorithm", algorithms("reduce"), ids=lambda a: a.name)
@pytest.mark.parametrize("symmetric", [False, True], ids=["ordinary", "symmetric"])
def test_every_reduce(comm, algorithm, symmetric):
    dtype, op, root = DTYPES["bfloat16"], pycomm.reduce_op(mixed), comm.size - 1
    for count in (0, 1, 1009, 300_001):
        parts = inputs(mixed, comm.size, count, dtype)
        x = comm.empty(count, "bfloat16") if symmetric else parts[comm.rank].copy()
        x[:] = parts[comm.rank]
        try:
            comm.reduce(x, root, op, algorithm=algorithm.name)
        except pycomm.ArgumentError as error:
            pytest.skip(str(error))
        if comm.rank == root:
            assert x.tobytes() == _expected(parts, algorithm.order).tobytes(), count


def _expected(parts, order):
    """Return the reduction by `mixed` in the order of an algorithm, with the ring's chunks."""
    dtype = DTYPES[parts[0].dtype.name]
    if order == "rank":
        return in_order(parts, dtype, mixed)
    counts = chunk_counts(parts[0].size, len(parts))
    edges = np.cumsum([0, *counts])
    turned = [[*parts[c + 1 :], *parts[: c + 1]] for c in range(len(parts))]
    return np.concatenate(
        [
            in_order([x[edges[c] : edges[c + 1]] for x in around], dtype, mixed)
            for c, around in enumerate(turned)
        ]
    )


def test_asynchronous_and_strided(comm):
    x = np.full((40, 6), float(-comm.rank))
    work = comm.all_reduce(x[:, ::2], pycomm.reduce_op(max_abs), async_op=True)
    work.wait()
    assert (x[:, ::2] == comm.size - 1).all() and (x[:, 1::2] == -comm.rank).all()


@pytest.mark.parametrize("algorithm", ["direct", "ring", "pairwise"])
def test_ranks_with_different_functions_get_an_error_and_keep_their_data(comm, algorithm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    factor = 2.0 if comm.rank == comm.size - 1 else 3.0
    op = pycomm.reduce_op(lambda a, b: a + b * factor)
    other = comm.split(0)
    x = np.full(100, float(comm.rank))
    try:
        with pytest.raises(
            pycomm.MismatchError, match=r"rank 0: all_reduce\(op='<lambda>#"
        ) as error:
            other.all_reduce(x, op, algorithm=algorithm)
    except pycomm.ArgumentError as error:
        pytest.skip(str(error))
    assert f"{op.name!r}" in str(error.value) and (x == comm.rank).all()
    other.close()


def test_a_function_against_a_builtin_operation(comm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    other = comm.split(0)
    op = "sum" if comm.rank == 0 else pycomm.reduce_op(lambda a, b: a + b)
    with pytest.raises(pycomm.MismatchError, match=r"op='sum'"):
        other.all_reduce(np.ones(3), op)
    other.close()


def test_what_does_not_compile_is_said_before_anything_moves(comm):
    x = np.full(5, comm.rank, np.int32)
    with pytest.raises(TypeError, match=r"does not work on int32: it returns float64"):
        comm.all_reduce(x, pycomm.reduce_op(lambda a, b: a / b))
    assert (x == comm.rank).all()
    comm.barrier()
