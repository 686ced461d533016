"""Device arrays through the hosts, where doubles do not reach each other: the hosts' own bits."""

from __future__ import annotations

import os

import numpy as np
import pytest

import pycomm
from pycomm.algorithms.registry import algorithms
from pycomm.observe import flight
from pycomm.transport.staged import SLOTS, Staged
from pycomm.types import DTYPES
from tests.algorithms.reference import CASES, random_inputs
from tests.mpi.devices import apart, doubles, ordinary, runtime, several, symmetric, transport_of
from tests.mpi.test_reductions import bits
from tests.user_ops import mixed

COUNTS = (0, 3, 1009, 5000)
ROWS = (0, 1, 900)
PLACES = {"symmetric": symmetric, "ordinary": ordinary}


@pytest.fixture(scope="module")
def dev(comm):
    with apart(comm) as other:
        yield other


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request):
    return request.param


def floats(dev, *shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Return this rank's array, whose sums depend on their order."""
    flat = random_inputs(dev.size, int(np.prod(shape, dtype=int)), DTYPES[dtype], seed)[dev.rank]
    return flat.reshape(shape)


def usable(dev, kind: str) -> list[str]:
    return [a.name for a in algorithms(kind) if a.supports(dev.transport)]


# ---- the same bits as the hosts'


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_reduce_and_reduce_by_every_algorithm(dev, make, dtype):
    several(dev)
    for kind in ("all_reduce", "reduce"):
        for name in usable(dev, kind):
            for count in COUNTS:
                host = floats(dev, count, dtype=dtype)
                root = {"root": dev.size - 1} if kind == "reduce" else {}
                x = make(dev, host)
                result = getattr(dev, kind)(x, **root, algorithm=name)
                want = getattr(dev, kind)(host, **root, algorithm=name)
                assert (result is x) == (want is not None)
                assert bits(x.get()) == bits(host), (kind, name, count)


def test_the_order_that_hosts_choose_and_the_one_asked_for(dev):
    for options in ({}, {"order": "rank"}):
        for count in COUNTS:
            host = floats(dev, count)
            x = ordinary(dev, host)
            assert dev.all_reduce(x, **options) is x
            dev.all_reduce(host, **options)
            assert bits(x.get()) == bits(host)


def test_every_dtype_and_operation(comm):
    several(comm)
    with apart(comm, delay_s=0.0) as dev:
        for dtype, op in CASES:
            host = random_inputs(dev.size, 1009, dtype)[dev.rank].copy()
            x = ordinary(dev, host)
            dev.all_reduce(x, op)
            dev.all_reduce(host, op)
            assert bits(x.get()) == bits(host), (dtype.name, op)


def test_operations_of_the_user(dev):
    op, host = pycomm.reduce_op(mixed), floats(dev, 3000)
    x = ordinary(dev, host)
    dev.all_reduce(x, op)
    dev.all_reduce(host, op)
    assert bits(x.get()) == bits(host)


def test_reduce_scatter_by_every_algorithm(dev, make):
    several(dev)
    for name in usable(dev, "reduce_scatter"):
        for rows in ROWS:
            for counts in (None, [rows * r for r in range(dev.size)]):
                host = floats(dev, sum(counts or [rows] * dev.size), 2)
                chunk = dev.reduce_scatter(make(dev, host), counts=counts, algorithm=name)
                want = dev.reduce_scatter(host, counts=counts, algorithm=name)
                assert bits(chunk.get()) == bits(want), (name, rows, counts)


def test_all_gather_by_every_algorithm(dev, make):
    several(dev)
    for name in usable(dev, "all_gather"):
        for rows in ROWS:
            for counts in (None, [rows * r for r in range(dev.size)]):
                host = floats(dev, counts[dev.rank] if counts else rows, 3)
                result = dev.all_gather(make(dev, host), counts=counts, algorithm=name)
                want = dev.all_gather(host, counts=counts, algorithm=name)
                assert result.shape == want.shape and bits(result.get()) == bits(want)


def test_broadcast_gather_and_scatter(dev, make):
    several(dev)
    for root in (0, dev.size - 1):
        for rows in ROWS:
            for name in usable(dev, "broadcast"):
                host = floats(dev, rows, 5)
                x = make(dev, host)
                assert dev.broadcast(x, root, algorithm=name) is x
                assert bits(x.get()) == bits(dev.broadcast(host, root))
            for name in usable(dev, "gather"):
                result = dev.gather(make(dev, floats(dev, rows)), root, algorithm=name)
                want = dev.gather(floats(dev, rows), root)
                assert (result is None) == (want is None)
                assert result is None or bits(result.get()) == bits(want)
            for name in usable(dev, "scatter"):
                x = make(dev, floats(dev, dev.size, rows)) if dev.rank == root else None
                out = make(dev, np.zeros(rows, np.float32))
                assert dev.scatter(x, root, out, algorithm=name) is out
                host = np.zeros(rows, np.float32)
                dev.scatter(floats(dev, dev.size, rows) if dev.rank == root else None, root, host)
                assert bits(out.get()) == bits(host)


def test_all_to_all_even_and_by_counts(dev, make):
    several(dev)
    n, rank = dev.size, dev.rank
    for name in usable(dev, "all_to_all"):
        for rows in ROWS:
            host = floats(dev, n, rows)
            result = dev.all_to_all(make(dev, host), algorithm=name)
            assert bits(result.get()) == bits(dev.all_to_all(host))
            sent = [rows * ((rank + r) % 3) for r in range(n)]
            host = floats(dev, sum(sent), 2)
            result = dev.all_to_all(make(dev, host), send_counts=sent, algorithm=name)
            assert bits(result.get()) == bits(dev.all_to_all(host, send_counts=sent))


def test_strided_arrays_and_out(dev):
    host = floats(dev, 60, 80)
    x = ordinary(dev, host)
    dev.all_reduce(x[3:50:2, 1::3])
    dev.all_reduce(host[3:50:2, 1::3])
    assert bits(x.get()) == bits(host)
    out, want = ordinary(dev, np.zeros((dev.size, 9, 7), np.float32)), floats(dev, 9, 7)
    assert dev.all_gather(ordinary(dev, want), out) is out
    assert bits(out.get()) == bits(dev.all_gather(want))


# ---- who goes this way


def test_one_gpu_out_of_reach_is_enough_and_all_ranks_know(comm):
    several(comm)
    with doubles(comm, comm.size, peers=() if comm.rank == 0 else None) as dev:
        dev.all_reduce(ordinary(dev, np.ones(3)))
        assert isinstance(transport_of(dev), Staged)
    with doubles(comm, comm.size) as dev:
        dev.all_reduce(ordinary(dev, np.ones(3)))
        assert not isinstance(transport_of(dev), Staged)


def test_segments_are_page_locked_until_the_communicator_is_closed(comm):
    several(comm)
    with apart(comm) as dev:
        assert not runtime().pinned
        dev.all_reduce(ordinary(dev, np.ones(3)))
        assert list(runtime().pinned.values()) == [4096] * 2 * SLOTS
        dev.close()
        assert not runtime().pinned


def test_calls_are_counted_and_recorded(dev):
    several(dev)
    dev.all_reduce(ordinary(dev, np.ones(8)))
    before = dev.stats.operations
    dev.all_reduce(ordinary(dev, np.ones(8)))
    assert dev.stats.operations == before + 1
    last = flight.read(os.getpid())["operations"][-1]
    assert (last["kind"], last["bytes"]) == ("all_reduce", 64)
    assert last["algorithm"].startswith("staged ") and "test_device_staged.py" in last["site"]
