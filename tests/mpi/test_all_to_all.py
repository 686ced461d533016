"""all_to_all on all ranks, with even and uneven parts, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycomm
from pycomm.algorithms.registry import algorithms
from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES
from tests.mpi.test_rooted import runs_here, symmetric

COUNTS = (0, 1, 2, 19, 1009, 65537, 200_003)
NAMES = [a.name for a in algorithms("all_to_all")]


def part(source: int, to: int, count: int, dtype: str = "int64") -> np.ndarray:
    """Return what `source` sends to `to`: values that depend on both and on the index."""
    x = (np.arange(count) * 31 + source * 17 + to * 5) % 127
    return x.astype(numpy_dtype(DTYPES[dtype]))


def outgoing(comm: pycomm.Communicator, count: int, dtype: str = "int64") -> np.ndarray:
    """Return the even parts that this rank sends."""
    return np.stack([part(comm.rank, r, count, dtype) for r in range(comm.size)])


def incoming(comm: pycomm.Communicator, count: int, dtype: str = "int64") -> np.ndarray:
    """Return the even parts that this rank must get."""
    return np.stack([part(r, comm.rank, count, dtype) for r in range(comm.size)])


def table(seed: int, size: int, most: int) -> np.ndarray:
    """Return how many rows each rank sends to each: a third of them none, the others random."""
    random = np.random.default_rng(seed)
    return random.integers(0, most + 1, (size, size)) * (random.random((size, size)) > 0.33)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", COUNTS)
def test_even_parts(comm, name, count):
    runs_here(comm, "all_to_all", name)
    x = outgoing(comm, count)
    x.flags.writeable = False
    y = comm.all_to_all(x.reshape(comm.size, count, 1), algorithm=name)
    assert y.shape == (comm.size, count, 1)
    assert np.array_equal(y[:, :, 0], incoming(comm, count))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(comm, dtype):
    y = comm.all_to_all(outgoing(comm, 1000, dtype))
    assert y.dtype == numpy_dtype(DTYPES[dtype])
    assert y.tobytes() == incoming(comm, 1000, dtype).tobytes()


@pytest.mark.parametrize("count", [19, 1025, 40_000, 300_007])
def test_symmetric_and_ordinary_arrays_alike(comm, count):
    x, expected = outgoing(comm, count), incoming(comm, count)
    for source in (x, symmetric(comm, x), x if comm.rank % 2 else symmetric(comm, x)):
        for out in (np.zeros_like(x), comm.empty(x.shape, x.dtype)):
            assert comm.all_to_all(source, out) is out
            assert np.array_equal(out, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("most", [1, 7, 1009, 30_011, 150_001])
@pytest.mark.parametrize("learned", [False, True], ids=["told", "learned"])
def test_uneven_rows(comm, name, most, learned):
    runs_here(comm, "all_to_all", name)
    for seed in range(4):
        counts = table(seed, comm.size, most)
        x = np.concatenate([part(comm.rank, r, c) for r, c in enumerate(counts[comm.rank])])
        mine = symmetric(comm, x) if (seed + comm.rank) % 3 == 0 else x
        receive = None if learned else counts[:, comm.rank]
        y = comm.all_to_all(mine, None, counts[comm.rank], receive, algorithm=name)
        expected = [part(r, comm.rank, c) for r, c in enumerate(counts[:, comm.rank])]
        assert np.array_equal(y, np.concatenate(expected))


def test_one_pair_has_everything_and_the_others_nothing(comm):
    counts = np.zeros((comm.size, comm.size), np.int64)
    counts[0, -1] = 400_009
    x = part(0, comm.size - 1, counts[comm.rank].sum(), "uint8")
    y = comm.all_to_all(x, send_counts=counts[comm.rank].tolist())
    assert y.size == counts[:, comm.rank].sum()
    assert np.array_equal(y, part(0, comm.size - 1, y.size, "uint8"))
    nothing = comm.all_to_all(np.empty((0, 4)), send_counts=[0] * comm.size)
    assert nothing.shape == (0, 4)


def test_rows_of_tensors_strided_into_out(comm):
    counts = [(comm.rank + r) % 3 for r in range(comm.size)]
    whole = torch.arange(sum(counts) * 8, dtype=torch.bfloat16).reshape(-1, 8)
    out = torch.zeros(sum(counts), 2, 4, dtype=torch.bfloat16).transpose(1, 2)
    x = whole[:, ::2].reshape(-1, 2, 2).transpose(1, 2)
    y = comm.all_to_all(x, None, counts, counts)
    assert isinstance(y, torch.Tensor) and y.shape == x.shape and y.dtype == torch.bfloat16
    z = comm.all_to_all(x.repeat(1, 2, 1), out, counts)
    assert z is out and torch.equal(out, y.repeat(1, 2, 1))
    back = comm.all_to_all(y, None, counts)
    assert torch.equal(back, x)


def test_even_strided_and_of_scalars(comm):
    x = np.arange(comm.size * 12.0).reshape(12, comm.size).T[:, ::3]
    out = np.zeros((comm.size, 8))[:, 1::2]
    assert comm.all_to_all(x + comm.rank, out) is out
    assert all(np.array_equal(out[r], x[comm.rank] + r) for r in range(comm.size))
    y = comm.all_to_all(torch.arange(comm.size) + 10 * comm.rank)
    assert y.tolist() == [comm.rank + 10 * r for r in range(comm.size)]


def test_asynchronous_ones_keep_their_order_and_messages_go_on(comm):
    """The counts are compared on the engine: the call returns before other ranks come."""
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    counts = [r + 1 for r in range(comm.size)]
    x = np.full(sum(counts), comm.rank)
    if comm.rank == 0:
        works = [comm.all_to_all(x, None, counts, async_op=True) for _ in range(3)]
        comm.send(np.zeros(1), after)
        comm.recv(before)
    else:
        comm.recv(before)
        comm.send(np.zeros(1), after)
        works = [comm.all_to_all(x, None, counts, async_op=True) for _ in range(3)]
    last = comm.all_to_all(np.full(comm.size, comm.rank))
    for work in works:
        assert np.array_equal(work.wait(), np.repeat(np.arange(comm.size), comm.rank + 1))
    assert last.tolist() == list(range(comm.size))


@pytest.mark.parametrize("wrong", ["counts", "out"])
@pytest.mark.parametrize("async_op", [False, True])
def test_counts_that_disagree_name_the_pair_on_every_rank(comm, wrong, async_op):
    other = comm.split(0)
    out = np.full(comm.size + (wrong == "out" and comm.rank == 0), 5.0)
    receive = [1] * comm.size
    receive[0] += wrong == "counts" and comm.rank == comm.size - 1
    told = {
        "counts": f"rank 0 sends 1 rows to rank {comm.size - 1}, which expects 2$",
        "out": f"rank 0 gets {comm.size} rows, but its out= has {comm.size + 1}$",
    }[wrong]

    def call():
        x = np.zeros(comm.size)
        result = other.all_to_all(x, out, [1] * comm.size, receive, async_op=async_op)
        return result.wait() if async_op else result

    with pytest.raises(pycomm.MismatchError, match=f"rank {comm.rank}: .*disagree.*\n  {told}"):
        call()
    assert (out == 5).all()
    with pytest.raises(pycomm.CommError, match="failed before.*disagree"):
        other.barrier()
    other.close()


def test_ranks_that_disagree_are_told_both_sides(comm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    x, counts = np.zeros((comm.size, 2)), [1] * comm.size
    calls = {
        r"all_to_all\(float64, shape=\(2,\).*all_to_all\(float64, shape=\(2, 1\)": (
            lambda c: c.all_to_all(x),
            lambda c: c.all_to_all(x[:, :, None]),
        ),
        r"all_to_all\(float64, shape=\(2,\).*all_to_all\(send_counts=…\)": (
            lambda c: c.all_to_all(x),
            lambda c: c.all_to_all(x, send_counts=counts),
        ),
        r"all_to_all\(float64, shape=\(2,\).*all_to_all\(float32, shape=\(2,\)": (
            lambda c: c.all_to_all(x, send_counts=counts),
            lambda c: c.all_to_all(x.astype(np.float32), send_counts=counts),
        ),
        r"all_gather\(int64, elements=.*all_to_all\(send_counts=…\)": (
            lambda c: c.all_gather(np.zeros(2 * c.size + 1, np.int64)),
            lambda c: c.all_to_all(x, send_counts=counts),
        ),
    }
    for message, (first, others) in calls.items():
        other = comm.split(0)
        with pytest.raises(pycomm.MismatchError, match=f"(?s)rank 0: {message}") as caught:
            (others if comm.rank else first)(other)
        assert f"{__file__}:" in str(caught.value)
        other.close()


def test_bad_arguments_are_said_with_their_values(comm):
    size = comm.size
    x, counts = np.zeros((size, 2)), [1] * size
    with pytest.raises(ValueError, match=rf"one part for each of {size} ranks"):
        comm.all_to_all(np.zeros(size + 1))
    with pytest.raises(ValueError, match="recv_counts= needs send_counts="):
        comm.all_to_all(x, recv_counts=counts)
    with pytest.raises(ValueError, match=f"send_counts=.* needs {size} entries"):
        comm.all_to_all(x, send_counts=[*counts, 0])
    with pytest.raises(ValueError, match="recv_counts=.* none negative"):
        comm.all_to_all(x, None, counts, [-1] * size)
    with pytest.raises(ValueError, match=rf"has not sum\(send_counts\)={size} rows"):
        comm.all_to_all(x[:-1], send_counts=counts)
    with pytest.raises(ValueError, match=r"out= has shape .* of float32"):
        comm.all_to_all(x, np.zeros((size, 2), np.float32))
    with pytest.raises(ValueError, match=r"out= has shape \(1, 3\)"):
        comm.all_to_all(x, np.zeros((1, 3)), counts)
    with pytest.raises(ValueError, match="out= overlaps x"):
        comm.all_to_all(x, x)
    with pytest.raises(ValueError, match="algorithm='star' does not exist for all_to_all"):
        comm.all_to_all(x, None, counts, algorithm="star")
    with pytest.raises(TypeError, match="NoneType is not an array"):
        comm.all_to_all(None)
    comm.barrier()
