"""Device arrays moved between doubles of GPUs: where every element goes, on both ways."""

from __future__ import annotations

import numpy as np
import pytest

import pycomm
from tests.devices.host_array import HostArray
from tests.mpi.devices import doubles, ordinary, symmetric
from tests.user_ops import mixed

PLACES = {"symmetric": symmetric, "ordinary": ordinary}
ROWS = (0, 1, 400)
COUNTS = (0, 1, 3001)


@pytest.fixture(scope="module", params=["slow", "one GPU each"])
def dev(request, comm):
    """A communicator of doubles; segments are so small that arrays take several."""
    gpus = comm.size if request.param == "one GPU each" else 1
    with doubles(comm, gpus, segment_bytes=4096) as other:
        yield other


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request):
    return request.param


@pytest.fixture
def makers():
    return symmetric, ordinary


def mine(rank: int, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Return a rank's array: every element of every rank is another."""
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) + 10_000 * rank).astype(dtype)


def test_reduce_leaves_the_other_ranks_arrays(dev, make):
    for root in range(dev.size):
        for count in COUNTS:
            x = make(dev, mine(dev.rank, count))
            result = dev.reduce(x, root, "sum")
            assert (result is x) if dev.rank == root else result is None
            want = mine(dev.rank, count)
            if dev.rank == root:
                want = sum(mine(r, count) for r in range(dev.size))
            assert np.array_equal(x.get(), want)


def test_broadcast(dev, make):
    for root in range(dev.size):
        for count in COUNTS:
            x = make(dev, mine(dev.rank, count))
            assert dev.broadcast(x, root) is x
            assert np.array_equal(x.get(), mine(root, count))


def test_all_gather_even_and_uneven_and_into_out(dev, make):
    for rows in ROWS:
        x = make(dev, mine(dev.rank, rows, 3))
        want = np.stack([mine(r, rows, 3) for r in range(dev.size)])
        assert np.array_equal(dev.all_gather(x).get(), want)
        out = make(dev, np.zeros_like(want))
        assert dev.all_gather(x, out) is out
        assert np.array_equal(out.get(), want)
        counts = [rows * r for r in range(dev.size)]
        x = make(dev, mine(dev.rank, counts[dev.rank], 2))
        want = np.concatenate([mine(r, c, 2) for r, c in enumerate(counts)])
        assert np.array_equal(dev.all_gather(x, counts=counts).get(), want)


def test_gather(dev, make):
    for root in (0, dev.size - 1):
        for rows in ROWS:
            result = dev.gather(make(dev, mine(dev.rank, rows, 3)), root)
            if dev.rank == root:
                want = np.stack([mine(r, rows, 3) for r in range(dev.size)])
                assert np.array_equal(result.get(), want)
            else:
                assert result is None


def test_reduce_scatter_even_and_uneven(dev, make):
    for rows in ROWS:
        for counts in (None, [rows * r for r in range(dev.size)]):
            lengths = counts or [rows] * dev.size
            parts = [mine(r, sum(lengths), 2) for r in range(dev.size)]
            chunk = dev.reduce_scatter(make(dev, parts[dev.rank]), counts=counts)
            begin = sum(lengths[: dev.rank])
            assert np.array_equal(chunk.get(), sum(parts)[begin : begin + lengths[dev.rank]])


def test_scatter_into_out(dev, make):
    for root in range(dev.size):
        for rows in ROWS:
            x = make(dev, mine(root, dev.size, rows)) if dev.rank == root else None
            out = make(dev, np.zeros(rows, np.float32))
            assert dev.scatter(x, root, out) is out
            assert np.array_equal(out.get(), mine(root, dev.size, rows)[dev.rank])


@pytest.mark.parametrize("async_op", [False, True], ids=["now", "async"])
def test_scatter_without_out(dev, make, async_op):
    """Ranks that pass no array get one of the root's kind, where that is."""
    for root in range(dev.size):
        for rows, with_out in ((0, 0), (400, 0), (400, 1)):
            made = make(dev, np.zeros((rows, 2), np.float32))
            out = made if with_out and dev.rank % 2 else None
            x = make(dev, mine(root, dev.size, rows, 2)) if dev.rank == root else None
            result = dev.scatter(x, root, out, async_op=async_op)
            result = result.wait() if async_op else result
            assert isinstance(result, type(made)) and (out is None or result is out)
            assert np.array_equal(result.get(), mine(root, dev.size, rows, 2)[dev.rank])


def test_scatter_from_the_host_among_those_from_gpus(dev):
    for turn in range(4):
        x = mine(0, dev.size, 3)
        source = symmetric(dev, x) if turn % 2 else x
        part = dev.scatter(source if dev.rank == 0 else None, async_op=turn > 1)
        part = part.wait(host=True) if turn > 1 else part
        assert isinstance(part, HostArray) == bool(turn % 2)
        assert np.array_equal(part.get() if turn % 2 else part, x[dev.rank])


def test_all_to_all_even_and_by_counts(dev, make):
    n, rank = dev.size, dev.rank
    for rows in ROWS:
        result = dev.all_to_all(make(dev, mine(rank, n, rows)))
        assert np.array_equal(result.get(), np.stack([mine(r, n, rows)[rank] for r in range(n)]))
        send = [[rows * ((s + r) % 3) for r in range(n)] for s in range(n)]
        x = make(dev, mine(rank, sum(send[rank]), 2))
        starts = [sum(send[s][:rank]) for s in range(n)]
        want = [
            mine(s, sum(send[s]), 2)[start : start + send[s][rank]]
            for s, start in enumerate(starts)
        ]
        got = dev.all_to_all(x, send_counts=send[rank])
        assert np.array_equal(got.get(), np.concatenate(want))


def test_symmetric_and_ordinary_arrays_in_one_call(dev, makers):
    for turn in range(dev.size):
        make = makers[dev.rank != turn]
        x = make(dev, mine(dev.rank, 3001))
        dev.all_reduce(x)
        assert np.array_equal(x.get(), sum(mine(r, 3001) for r in range(dev.size)))
        assert np.array_equal(
            dev.all_gather(make(dev, mine(dev.rank, 1001))).get(),
            np.stack([mine(r, 1001) for r in range(dev.size)]),
        )


def test_strided_arrays_and_views_into_symmetric_ones(dev, make):
    whole = make(dev, mine(dev.rank, 60, 80))
    dev.all_reduce(whole[3:50:2, 1::3])
    total, want = sum(mine(r, 60, 80) for r in range(dev.size)), mine(dev.rank, 60, 80)
    want[3:50:2, 1::3] = total[3:50:2, 1::3]
    assert np.array_equal(whole.get(), want)
    dev.all_reduce(whole[0:2])
    want[0:2] = total[0:2]
    assert np.array_equal(whole.get(), want)


def test_calls_of_the_same_memory_are_told_apart(dev):
    x = symmetric(dev, mine(dev.rank, 600))
    everyone = [mine(r, 600) for r in range(dev.size)]
    for count, op, of in ((600, "sum", np.sum), (300, "sum", np.sum), (300, "max", np.max)):
        for root in range(dev.size):
            x[...] = everyone[dev.rank]
            dev.reduce(x[:count], root, op)
            want = everyone[dev.rank].copy()
            if dev.rank == root:
                want[:count] = of(everyone, 0)[:count]
            assert np.array_equal(x.get(), want)


def test_operations_of_the_user(dev, make):
    op = pycomm.reduce_op(mixed)
    inputs = [mine(r, 900) / 1000 for r in range(dev.size)]
    host, x = inputs[dev.rank].copy(), make(dev, inputs[dev.rank])
    dev.all_reduce(host, op, order="rank")
    dev.all_reduce(x, op)
    assert np.array_equal(x.get(), host)
