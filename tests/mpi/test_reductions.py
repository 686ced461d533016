"""Reductions on all ranks against one process in NumPy: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycomm
from pycomm import _native
from pycomm.algorithms.registry import algorithms
from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES, DType, ReduceOp
from tests.algorithms.reference import CASES, in_order, operations, random_inputs

COUNTS = (0, 1, 2, 3, 17, 18, 19, 31, 1009, 65537)
"""18 elements of float32 are the most that fit a line of the board; 65 537 go in segments."""

ALL = [(d, op) for d in DTYPES.values() for op in operations(d)]


def bits(x: np.ndarray) -> bytes:
    """Return the bytes of an array."""
    return np.ascontiguousarray(x).tobytes()


def expected(comm: pycomm.Communicator, count: int, dtype: DType, op: ReduceOp) -> np.ndarray:
    """Return what one process gets that adds all ranks' arrays in rank order."""
    return in_order(random_inputs(comm.size, count, dtype), dtype, op)


@pytest.mark.parametrize(("dtype", "op"), CASES, ids=lambda x: x.name)
@pytest.mark.parametrize("symmetric", [False, True], ids=["ordinary", "symmetric"])
def test_all_reduce_adds_in_order(comm, dtype, op, symmetric):
    for count in COUNTS:
        mine = random_inputs(comm.size, count, dtype)[comm.rank]
        x = comm.empty(count, numpy_dtype(dtype)) if symmetric else mine.copy()
        x[:] = mine
        assert comm.all_reduce(x, op, order="rank") is x
        assert bits(x) == bits(expected(comm, count, dtype, op)), count


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
def test_small_integers_sum_exactly_in_every_dtype(comm, dtype):
    op = "bor" if dtype.family == "bool" else "sum"
    for count in (1, 7, 40000):
        index = np.arange(count)
        parts = [
            ((index * 7 + rank * 3) % 3).astype(numpy_dtype(dtype)) for rank in range(comm.size)
        ]
        x = parts[comm.rank].copy()
        comm.all_reduce(x, op, order="rank")
        total = sum((index * 7 + rank * 3) % 3 for rank in range(comm.size))
        assert bits(x) == bits(total.astype(numpy_dtype(dtype))), count


def test_large_arrays_take_the_same_bits_on_every_path(comm):
    """In one piece, in segments, in place, or both mixed; through views at odd offsets."""
    count = 1_000_003
    mine = np.random.default_rng(comm.rank).standard_normal(count).astype(np.float32)
    parts = [
        np.random.default_rng(r).standard_normal(count).astype(np.float32) for r in range(comm.size)
    ]
    total = in_order(parts, DTYPES["float32"], ReduceOp("sum"))
    buffers = [np.empty(count, np.float32), comm.empty(count), comm.empty(count + comm.rank + 5)]
    mixed = buffers[comm.rank % 2]
    for x in (buffers[0], buffers[1], mixed, buffers[2][comm.rank + 3 : comm.rank + 3 + count]):
        x[:] = mine
        comm.all_reduce(x, order="rank")
        assert bits(x) == bits(total)


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_instruction_levels_give_the_same_bits(comm, level):
    best = _native.level()
    try:
        _native.use_level(level)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for dtype, op in CASES:
            x = random_inputs(comm.size, 1009, dtype)[comm.rank].copy()
            comm.all_reduce(x, op, order="rank")
            assert bits(x) == bits(expected(comm, 1009, dtype, op)), (dtype.name, op)
    finally:
        _native.use_level(best)


PORTABLE = [a.name for a in algorithms("all_reduce") if a.name != "direct" and not a.by_host]


@pytest.mark.parametrize("name", PORTABLE)
def test_algorithms_by_name_agree_with_numpy(comm, name):
    for dtype in ("int64", "float32", "bfloat16", "uint8"):
        for count in (0, 1, 2, 1009, 300_001):
            x = np.arange(count).astype(numpy_dtype(DTYPES[dtype])) % np.array(
                5, numpy_dtype(DTYPES[dtype])
            )
            total = (x.astype(np.float64) * comm.size).astype(x.dtype)
            comm.all_reduce(x, algorithm=name)
            assert bits(x) == bits(total), (dtype, count)


@pytest.mark.parametrize("name", [a.name for a in algorithms("reduce_scatter")])
@pytest.mark.parametrize("count", [1, 5, 1009, 40_000])
def test_reduce_scatter_even_and_uneven(comm, name, count):
    whole = np.arange(comm.size * count, dtype=np.int32).reshape(comm.size * count, 1) * (
        comm.rank + 1
    )
    factor = comm.size * (comm.size + 1) // 2
    base = np.arange(comm.size * count, dtype=np.int32).reshape(-1, 1)
    try:
        chunk = comm.reduce_scatter(whole, algorithm=name)
    except pycomm.ArgumentError as error:  # "direct" without shared memory, on every rank
        pytest.skip(str(error))
    assert np.array_equal(chunk, base[comm.rank * count : (comm.rank + 1) * count] * factor)
    counts = [count * comm.size - count * (comm.size - 1)] + [count] * (comm.size - 1)
    counts = [2 * count if r == 0 else 0 if r == 1 else c for r, c in enumerate(counts)][
        : comm.size
    ]
    counts = counts if comm.size > 1 else [count]
    begin = sum(counts[: comm.rank])
    chunk = comm.reduce_scatter(whole, counts=counts, algorithm=name)
    assert np.array_equal(chunk, base[begin : begin + counts[comm.rank]] * factor)


def test_reduce_scatter_adds_in_order_into_out(comm):
    for symmetric in (False, True):
        for count in (3, 1009, 200_000):
            parts = random_inputs(comm.size, comm.size * count, DTYPES["bfloat16"])
            total = in_order(parts, DTYPES["bfloat16"], ReduceOp("avg"))
            x = comm.empty(comm.size * count, "bfloat16") if symmetric else parts[comm.rank].copy()
            x[:] = parts[comm.rank]
            out = np.zeros(count, x.dtype)
            assert comm.reduce_scatter(x, "avg", out=out, order="rank") is out
            assert bits(out) == bits(total[comm.rank * count : (comm.rank + 1) * count])


def test_torch_tensors_strided_arrays_and_views_of_both(comm):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8):
        x = torch.full((3, 5), comm.rank + 1).to(dtype)
        assert comm.all_reduce(x) is x
        assert torch.equal(x, torch.full((3, 5), comm.size * (comm.size + 1) // 2).to(dtype))
    y = np.full((6, 8), comm.rank, np.float32)
    comm.all_reduce(y[::2, 1::3])
    total = comm.size * (comm.size - 1) / 2
    assert (y[::2, 1::3] == total).all()
    assert (y[1::2] == comm.rank).all() and (y[::2, 0] == comm.rank).all()
    z = torch.full((4, 4), float(comm.rank))
    comm.all_reduce(z.t()[1:])
    assert (z[:, 1:] == total).all() and (z[:, 0] == comm.rank).all()


def test_denormals_survive_whatever_mode_torch_is_in(comm):
    tiny = np.full(1000, 1e-45, np.float32)
    torch.set_flush_denormal(True)
    try:
        comm.all_reduce(tiny)
    finally:
        torch.set_flush_denormal(False)
    assert (tiny.view(np.int32) == comm.size).all()


def test_asynchronous_operations_keep_their_order(comm):
    arrays = [np.full(n, comm.rank + 1, np.int64) for n in (1, 1000, 100_000, 10)]
    works = [comm.all_reduce(x, async_op=True) for x in arrays]
    last = comm.all_reduce(np.array([comm.rank]))
    total = comm.size * (comm.size + 1) // 2
    for x, work in zip(arrays, works, strict=True):
        assert work.wait() is x
        assert work.done() and work.exception() is None
        assert (x == total).all()
    assert last[0] == comm.size * (comm.size - 1) // 2


def test_two_communicators_make_progress_in_opposite_order(comm):
    other = comm.split(0)
    a, b = np.full(50_000, 1.0), np.full(50_000, 2.0)
    order = [(comm, a), (other, b)] if comm.rank % 2 else [(other, b), (comm, a)]
    for work in [c.all_reduce(x, async_op=True) for c, x in order]:
        work.wait()
    assert (a == comm.size).all() and (b == 2 * comm.size).all()
    other.close()


def test_what_an_operation_cannot_do_is_said_before_anything_moves(comm):
    with pytest.raises(pycomm.UnsupportedError, match=r"'sum' does not exist on bool: use 'bor'"):
        comm.all_reduce(np.zeros(3, bool))
    with pytest.raises(TypeError, match="'avg' does not exist on int32"):
        comm.all_reduce(np.zeros(3, np.int32), "avg")
    with pytest.raises(ValueError, match="op='mean' is not one of"):
        comm.all_reduce(np.zeros(3), "mean")
    with pytest.raises(ValueError, match="algorithm='star' does not exist for all_reduce"):
        comm.all_reduce(np.zeros(3), algorithm="star")
    with pytest.raises(ValueError, match="adds in ring order"):
        comm.all_reduce(np.zeros(3), algorithm="ring", order="rank")
    with pytest.raises(ValueError, match="read-only"):
        comm.all_reduce(np.broadcast_to(np.zeros(1), 3))
    with pytest.raises(ValueError, match="requires grad"):
        comm.all_reduce(torch.zeros(3, requires_grad=True))
    with pytest.raises(TypeError, match="a list is not an array"):
        comm.all_reduce([1.0])
    with pytest.raises(ValueError, match="cannot get equal chunks"):
        comm.reduce_scatter(np.zeros(comm.size + 1) if comm.size > 1 else np.zeros(()))
    comm.barrier()
