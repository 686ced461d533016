"""Broadcast, gather, barrier and objects on all ranks against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycomm
from pycomm.algorithms.registry import algorithms
from pycomm.arrays import numpy_dtype
from pycomm.types import DTYPES

COUNTS = (0, 1, 13, 1009, 65537, 400_009)


def data(rank: int, count: int, dtype: str = "int64") -> np.ndarray:
    """Return values that depend on rank and index."""
    return ((np.arange(count) * 31 + rank * 17) % 127).astype(numpy_dtype(DTYPES[dtype]))


@pytest.mark.parametrize("name", [a.name for a in algorithms("broadcast")])
def test_broadcast_from_every_root(comm, name):
    for root in range(comm.size):
        for count in COUNTS:
            x = data(comm.rank, count)
            try:
                assert comm.broadcast(x, root, algorithm=name) is x
            except pycomm.ArgumentError as error:
                pytest.skip(str(error))
            assert np.array_equal(x, data(root, count))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_arrives_as_it_was_sent(comm, dtype):
    x = data(comm.rank, 1000, dtype)
    comm.broadcast(x, comm.size - 1)
    assert x.tobytes() == data(comm.size - 1, 1000, dtype).tobytes()
    everyone = comm.all_gather(data(comm.rank, 1000, dtype))
    assert everyone.dtype == numpy_dtype(DTYPES[dtype])
    assert everyone.tobytes() == b"".join(data(r, 1000, dtype).tobytes() for r in range(comm.size))


def test_broadcast_of_symmetric_buffers_and_read_only_arrays_of_the_root(comm):
    x = comm.empty((500, 700), "float64")
    x[:] = comm.rank
    comm.broadcast(x, comm.size - 1)
    assert (x == comm.size - 1).all()
    y = data(0, 100)
    y.flags.writeable = comm.rank > 0
    comm.broadcast(y, 0)
    assert np.array_equal(y, data(0, 100))


def test_a_free_running_root_loses_no_broadcast(comm):
    """The root looks back at nobody between 100 000 broadcasts, 500 by messages; each arrives."""
    x = np.zeros(1, np.int64)
    wrong = 0
    by_board = comm.explain("broadcast", 8).split()[7] == "direct"
    for i in range(100_000 if by_board else 500):
        if comm.rank == 0:
            x[0] = i
        comm.broadcast(x, 0)
        wrong += int(x[0]) != i
    assert wrong == 0


@pytest.mark.parametrize("name", [a.name for a in algorithms("all_gather")])
def test_all_gather_even_and_uneven(comm, name):
    for count in COUNTS:
        x = data(comm.rank, count).reshape(count, 1)
        try:
            y = comm.all_gather(x, algorithm=name)
        except pycomm.ArgumentError as error:
            pytest.skip(str(error))
        assert y.shape == (comm.size, count, 1)
        assert all(np.array_equal(y[r, :, 0], data(r, count)) for r in range(comm.size))
    if name == "bruck":
        return  # equal counts only
    for scale in (1, 100_000):
        counts = [scale * ((r * 2) % 3) for r in range(comm.size)]
        y = comm.all_gather(data(comm.rank, counts[comm.rank]), counts=counts, algorithm=name)
        assert np.array_equal(y, np.concatenate([data(r, c) for r, c in enumerate(counts)]))


def test_all_gather_from_symmetric_buffers_into_out(comm):
    x = comm.empty(300_000 + 0, torch.float32)
    x.fill_(comm.rank)
    out = torch.empty(comm.size, 300_000)
    assert comm.all_gather(x, out=out) is out
    assert torch.equal(out, torch.arange(comm.size).float()[:, None].expand(-1, 300_000))
    strided = np.zeros((comm.size, 2, 4), np.float32)[:, :, ::2]
    comm.all_gather(np.full((2, 2), comm.rank, np.float32), out=strided)
    assert all((strided[r] == r).all() for r in range(comm.size))


def test_symmetric_buffers_at_different_offsets_and_freed_at_different_times(comm):
    random = np.random.default_rng(comm.rank)
    kept = []
    for _ in range(60):
        kept.append(comm.empty(int(random.integers(1, 50_000)), "uint8"))
        x = comm.empty(20_001)
        x[:] = comm.rank + 1
        comm.all_reduce(x)
        assert (x == comm.size * (comm.size + 1) / 2).all()
        kept = [k for k in kept if random.random() < 0.7]
    assert all(k.flags.writeable for k in kept)


def test_a_symmetric_buffer_works_in_a_split_communicator(comm):
    x = comm.empty(30_000, "int32")
    x[:] = comm.rank
    half = comm.split(comm.rank % 2)
    half.all_reduce(x)
    assert (x == sum(range(comm.rank % 2, comm.size, 2))).all()
    half.close()


def test_split_orders_by_key_and_none_takes_no_part(comm):
    reverse = comm.split(7, key=-comm.rank)
    assert (reverse.rank, reverse.size) == (comm.size - 1 - comm.rank, comm.size)
    assert reverse.all_gather_object(comm.rank) == list(reversed(range(comm.size)))
    only_first = comm.split(0 if comm.rank == 0 else None)
    assert (only_first is None) == (comm.rank > 0)
    reverse.close()


def test_node_mates(comm):
    assert comm.local.size >= 1
    x = comm.local.all_reduce(np.ones(1))
    assert x[0] == comm.local.size


def test_objects(comm):
    root = comm.size - 1
    thing = {"rank": comm.rank, "list": [1.5, "ä", None], "big": b"x" * 300_000}
    assert comm.broadcast_object(thing if comm.rank == root else None, root)["rank"] == root
    assert [o[0] for o in comm.all_gather_object((comm.rank, "y" * comm.rank))] == list(
        range(comm.size)
    )


def test_barrier_waits_for_everyone(comm):
    counts = comm.empty(1, "int64")
    for i in range(50):
        counts[0] = i
        comm.barrier()
        assert (comm.all_gather(counts)[:, 0] == i).all()
        comm.barrier()


def test_bad_arguments_are_said_with_their_values(comm):
    with pytest.raises(ValueError, match=f"root={comm.size} is not one of 0…{comm.size - 1}"):
        comm.broadcast(np.zeros(1), comm.size)
    with pytest.raises(ValueError, match="needs .* entries"):
        comm.all_gather(np.zeros(1), counts=[1] * (comm.size + 1))
    with pytest.raises(ValueError, match="rows"):
        comm.all_gather(np.zeros(3), counts=[1] * comm.size)
    with pytest.raises(ValueError, match=r"out= has shape \(1,\) of float64"):
        comm.all_gather(np.zeros(3), out=np.zeros(1))
    comm.barrier()


def test_a_closed_communicator_says_so(comm):
    other = comm.split(0)
    other.close()
    other.close()
    with pytest.raises(pycomm.CommError, match="was closed"):
        other.barrier()
