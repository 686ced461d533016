"""reduce, gather and scatter on all ranks, from and to every root, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycomm
from pycomm.algorithms.registry import algorithms
from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES, ReduceOp
from tests.algorithms.reference import CASES, in_order, random_inputs

COUNTS = (0, 1, 2, 19, 1009, 65537, 200_003)
"""From a line of the board to several pieces of every path."""


def data(rank: int, count: int, dtype: str = "int64") -> np.ndarray:
    """Return values that depend on rank and index."""
    return ((np.arange(count) * 31 + rank * 17) % 127).astype(numpy_dtype(DTYPES[dtype]))


def names(kind: str) -> pytest.MarkDecorator:
    """Parametrize a test with the algorithms of a collective."""
    return pytest.mark.parametrize("name", [a.name for a in algorithms(kind)])


def runs_here(comm: pycomm.Communicator, kind: str, name: str) -> None:
    """Skip the test, on every rank, if the algorithm needs shared memory and there is none."""
    try:
        comm._collectives.choose(kind, 0, name, None)
    except pycomm.ArgumentError as error:
        pytest.skip(str(error))


def symmetric(comm: pycomm.Communicator, x: np.ndarray) -> np.ndarray:
    """Return a copy of `x` in memory that the ranks share."""
    copy = comm.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


# ---- reduce


@pytest.mark.parametrize("symmetric_", [False, True], ids=["ordinary", "symmetric"])
@pytest.mark.parametrize(("dtype", "op"), CASES, ids=lambda x: x.name)
def test_reduce_adds_in_rank_order_and_leaves_the_others_alone(comm, dtype, op, symmetric_):
    for i, count in enumerate(COUNTS[:6]):
        root = (i + dtype.code) % comm.size
        parts = random_inputs(comm.size, count, dtype)
        x = symmetric(comm, parts[comm.rank]) if symmetric_ else parts[comm.rank].copy()
        result = comm.reduce(x, root, op, order="rank")
        assert result is (x if comm.rank == root else None)
        kept = in_order(parts, dtype, op) if comm.rank == root else parts[comm.rank]
        assert x.tobytes() == kept.tobytes(), (count, root)


@names("reduce")
def test_reduce_to_every_root(comm, name):
    runs_here(comm, "reduce", name)
    for root in range(comm.size):
        for count in COUNTS:
            x = data(comm.rank, count)
            comm.reduce(x, root, algorithm=name)
            total = sum(data(r, count) for r in range(comm.size))
            assert np.array_equal(x, total if comm.rank == root else data(comm.rank, count))


def test_reduce_takes_the_same_bits_on_every_path(comm):
    """In one piece, in pieces, in place, mixed; the same as all_reduce in its default order."""
    parts = [np.random.default_rng(r).standard_normal(400_003) for r in range(comm.size)]
    total = in_order(parts, DTYPES["float64"], ReduceOp("sum"))
    buffers = [parts[comm.rank].copy(), symmetric(comm, parts[comm.rank])]
    for x in (buffers[0], buffers[1], buffers[comm.rank % 2]):
        x[:] = parts[comm.rank]
        comm.reduce(x, comm.size - 1, order="rank")
        last = comm.rank == comm.size - 1
        assert x.tobytes() == (total if last else parts[comm.rank]).tobytes()
    for algorithm in ("ring", "pairwise"):
        x, y = parts[comm.rank].copy(), parts[comm.rank].copy()
        comm.reduce(x, 0, algorithm=algorithm)
        comm.all_reduce(y, algorithm=algorithm)
        assert comm.rank or x.tobytes() == y.tobytes()


def test_reduce_of_strided_tensors_and_read_only_arrays(comm):
    root = comm.size // 2
    y = np.full((6, 8), comm.rank, np.float32)
    x = y[::2, 1::3]
    assert comm.reduce(x, root) is (x if comm.rank == root else None)
    total = comm.size * (comm.size - 1) / 2
    assert (x == (total if comm.rank == root else comm.rank)).all()
    assert (y[1::2] == comm.rank).all()
    t = torch.full((3, 4), comm.rank + 1.0, dtype=torch.bfloat16, requires_grad=comm.rank != root)
    comm.reduce(t, root, "max")
    assert (t == (comm.size if comm.rank == root else comm.rank + 1)).all()
    z = np.full(5, comm.rank)
    z.flags.writeable = comm.rank == root
    comm.reduce(z, root)
    assert (z == (total if comm.rank == root else comm.rank)).all()


# ---- gather


@names("gather")
def test_gather_to_every_root(comm, name):
    runs_here(comm, "gather", name)
    for root in range(comm.size):
        for count in COUNTS:
            x = data(comm.rank, count).reshape(count, 1)
            y = comm.gather(x, root, algorithm=name)
            if comm.rank != root:
                assert y is None
                continue
            assert y.shape == (comm.size, count, 1)
            assert all(np.array_equal(y[r, :, 0], data(r, count)) for r in range(comm.size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_gathered_and_scattered_as_it_is(comm, dtype):
    root, everyone = comm.size - 1, [data(r, 1000, dtype) for r in range(comm.size)]
    whole = comm.gather(everyone[comm.rank], root)
    assert (whole is None) == (comm.rank != root)
    if whole is not None:
        assert whole.tobytes() == b"".join(x.tobytes() for x in everyone)
    part = comm.scatter(whole, root)
    assert part.dtype == everyone[0].dtype and part.tobytes() == everyone[comm.rank].tobytes()


@pytest.mark.parametrize("count", [19, 1025, 40_000, 300_007])
def test_symmetric_and_ordinary_arrays_are_gathered_alike(comm, count):
    mine = data(comm.rank, count, "float32")
    mixed = mine if comm.rank % 2 else symmetric(comm, mine)
    for root in range(comm.size):
        for x in (mine, symmetric(comm, mine), mixed):
            out = comm.empty((comm.size, count)) if comm.rank == root else None
            assert comm.gather(x, root, out) is out
            if out is not None:
                assert all(np.array_equal(out[r], data(r, count)) for r in range(comm.size))


def test_gather_in_place_strided_and_of_scalars(comm):
    out = np.full((comm.size, 70_000), -1.0)
    mine = out[comm.rank] if comm.rank == 0 else np.empty(70_000)
    mine[:] = comm.rank
    comm.gather(mine, 0, out)
    if comm.rank == 0:
        assert (out == np.arange(comm.size)[:, None]).all()
    strided = torch.zeros(comm.size, 6)[:, ::2]
    x = torch.arange(9.0).reshape(3, 3).t()[comm.rank % 3]
    assert comm.gather(x, 0, strided) is (strided if comm.rank == 0 else None)
    if comm.rank == 0:
        whole = torch.arange(9.0).reshape(3, 3).t()
        assert torch.equal(strided, whole[torch.arange(comm.size) % 3])
    scalars = comm.gather(np.array(comm.rank), comm.size - 1)
    if comm.rank == comm.size - 1:
        assert scalars.tolist() == list(range(comm.size))


# ---- scatter


@names("scatter")
def test_scatter_from_every_root(comm, name):
    runs_here(comm, "scatter", name)
    for root in range(comm.size):
        for count in COUNTS:
            x = np.stack([data(r + root, count) for r in range(comm.size)])[:, :, None]
            x.flags.writeable = False
            y = comm.scatter(x if comm.rank == root else None, root, algorithm=name)
            assert y.shape == (count, 1)
            assert np.array_equal(y[:, 0], data(comm.rank + root, count))


@pytest.mark.parametrize("count", [19, 1025, 40_000, 300_007])
def test_symmetric_and_ordinary_arrays_are_scattered_alike(comm, count):
    x = np.stack([data(r, count, "float32") for r in range(comm.size)])
    for root in range(comm.size):
        for source in (x, symmetric(comm, x)):
            for out in (np.zeros(count, np.float32), comm.empty(count)):
                assert comm.scatter(source if comm.rank == root else None, root, out) is out
                assert np.array_equal(out, x[comm.rank])


def test_scatter_into_out_on_some_ranks_only(comm):
    x = torch.arange(comm.size * 6).reshape(comm.size, 2, 3) if comm.rank == 0 else None
    out = torch.zeros(2, 6, dtype=torch.int64)[:, ::2] if comm.rank % 2 else None
    y = comm.scatter(x, 0, out)
    assert isinstance(y, torch.Tensor) and (y is out or out is None)
    assert torch.equal(y, torch.arange(6).reshape(2, 3) + 6 * comm.rank)
    scalar = comm.scatter(np.arange(comm.size) * 2.0, 0)
    assert scalar.shape == () and scalar == 2 * comm.rank


def test_scatter_in_place_on_the_root(comm):
    x = symmetric(comm, np.arange(comm.size * 50_000).reshape(comm.size, -1))
    out = x[0] if comm.rank == 0 else np.zeros(50_000, np.int64)
    comm.scatter(x, 0, out)
    assert np.array_equal(out, np.arange(50_000) + comm.rank * 50_000)


# ---- all of them


def test_asynchronous_ones_keep_their_order(comm):
    x = [np.full(n, comm.rank + 1, np.int64) for n in (1, 1000, 100_000)]
    works = [comm.reduce(a, 0, async_op=True) for a in x]
    works.append(comm.gather(np.array([comm.rank]), 0, async_op=True))
    works.append(comm.scatter(np.arange(comm.size), 0, async_op=True))
    last = comm.scatter(np.arange(comm.size) + 5, 0)
    reduced, gathered, scattered = works[:3], works[3].wait(), works[4].wait()
    assert last == comm.rank + 5 and scattered == comm.rank
    for a, work in zip(x, reduced, strict=True):
        assert work.wait() is (None if comm.rank else a) and work.exception() is None
        assert (a == (comm.rank + 1 if comm.rank else comm.size * (comm.size + 1) // 2)).all()
    assert (gathered is None) == (comm.rank > 0)


def test_a_root_that_looks_back_at_nobody_loses_nothing(comm):
    """Thousands of rooted calls in which only the root, or only the others, need any data."""
    wrong = 0
    for i in range(3000):
        root = i % 2 % comm.size
        y = comm.gather(np.array([comm.rank + i]), root)
        wrong += y is not None and y[:, 0].tolist() != [r + i for r in range(comm.size)]
        x = np.arange(comm.size) + i if comm.rank == root else None
        wrong += comm.scatter(x, root) != comm.rank + i
        z = comm.reduce(np.array([i]), root)
        wrong += z is not None and z[0] != i * comm.size
    assert wrong == 0


def test_ranks_that_disagree_are_told_both_sides(comm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    other = comm.split(0)
    x = np.full(3, 2.0)
    with pytest.raises(pycomm.MismatchError, match=r"(?s)reduce\(.*root=0.*reduce\(.*root=1"):
        other.reduce(x, int(comm.rank > 0))
    assert (x == 2).all()
    other.close()
    other = comm.split(0)
    with pytest.raises(pycomm.MismatchError, match=r"(?s)gather\(.*shape=\(3,\).*shape=\(3, 1\)"):
        other.gather(np.zeros(3) if comm.rank == 0 else np.zeros((3, 1)))
    other.close()
    other, x = comm.split(0), np.arange(80)
    with pytest.raises(pycomm.MismatchError, match=r"(?s)rank 0: scatter\(root=0.*broadcast\("):
        other.scatter(np.zeros((comm.size, 3))) if comm.rank == 0 else other.broadcast(x)
    assert (x == np.arange(80)).all()
    other.close()


def test_bad_arguments_are_said_with_their_values(comm):
    size = comm.size
    for call in (comm.reduce, comm.gather, comm.scatter):
        with pytest.raises(ValueError, match=f"root={size} is not one of 0…{size - 1}"):
            call(np.zeros(size), size)
        with pytest.raises(ValueError, match="algorithm='star' does not exist for"):
            call(np.zeros(size), 0, algorithm="star")
    with pytest.raises(TypeError, match="'sum' does not exist on bool: use 'bor'"):
        comm.reduce(np.zeros(3, bool))
    with pytest.raises(ValueError, match="read-only"):
        comm.reduce(np.broadcast_to(np.zeros(1), 3), comm.rank)
    with pytest.raises(ValueError, match=rf"out= has shape \(1,\) .* has \({size}, 3\)"):
        comm.gather(np.zeros(3), comm.rank, np.zeros(1))
    with pytest.raises(ValueError, match=rf"one part for each of {size} ranks"):
        comm.scatter(np.zeros((size + 1, 2)), comm.rank)
    with pytest.raises(ValueError, match=r"out= has shape \(3,\) of float64"):
        comm.scatter(np.zeros((size, 2)), comm.rank, np.zeros(3))
    with pytest.raises(TypeError, match="NoneType is not an array"):
        comm.scatter(None, comm.rank)
    comm.barrier()
