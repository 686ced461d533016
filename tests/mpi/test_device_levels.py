"""Device arrays on two hosts, really one, within which two doubles reach each other."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import pycomm
from pycomm.device_levels import Levels
from pycomm.types import DTYPES
from tests.algorithms.reference import CASES, by_host, random_inputs
from tests.mpi.devices import DELAY_S, doubles, let_fail, ordinary, runtime, symmetric, transport_of
from tests.mpi.test_reductions import bits
from tests.user_ops import mixed


@contextlib.contextmanager
def two_hosts(comm, delay_s=DELAY_S):
    """Give a communicator of doubles that knows of two hosts."""
    if comm.size != 4:
        pytest.skip("needs two hosts of two ranks")
    known = comm.world.neighbours
    before, known.hosts = known.hosts, [(f"host {r // 2}",) for r in range(comm.size)]
    mate = [f"double {comm.rank ^ 1}"]
    try:
        with doubles(comm, comm.size, delay_s, mate, segment_bytes=4096) as dev:
            yield dev
    finally:
        known.hosts = before


@pytest.fixture(scope="module")
def dev(comm):
    with two_hosts(comm) as other:
        yield other


@pytest.fixture
def one(comm):
    """A communicator of the test's own, to be broken."""
    with two_hosts(comm) as other:
        yield other


@pytest.mark.parametrize(("dtype", "op"), CASES, ids=lambda x: x.name)
def test_all_reduce_adds_as_hosts_do(dev, dtype, op):
    for make, count in ((ordinary, 0), (ordinary, 3), (symmetric, 1009), (ordinary, 5000)):
        inputs = random_inputs(dev.size, count, dtype)
        x = make(dev, inputs[dev.rank])
        assert dev.all_reduce(x, op) is x
        want = by_host([inputs[:2], inputs[2:]], dtype, op)
        assert bits(x.get()) == bits(want), count
        host = inputs[dev.rank].copy()
        dev.all_reduce(host, op, algorithm="hierarchical")
        assert bits(host) == bits(want)


def test_only_a_part_goes_through_the_host(dev):
    x = ordinary(dev, np.ones(5000))
    dev.all_reduce(x)
    transport = transport_of(dev)
    assert isinstance(transport, Levels)
    ends = {slot.ctypes.data: slot for slot in transport._across._sources}
    moved = [0]
    real = runtime().copy

    def count(target, source, nbytes, stream):
        moved[0] += nbytes * (source in ends)
        real(target, source, nbytes, stream)

    runtime().copy = count
    try:
        dev.all_reduce(x)
    finally:
        del runtime().copy
    assert moved[0] == x.nbytes // 2 and (x.get() == 16).all()


def test_other_orders_and_kinds_are_staged(dev):
    host = random_inputs(dev.size, 3000, DTYPES["float32"])[dev.rank]
    for call in (
        lambda x: dev.all_reduce(x, order="rank"),
        lambda x: dev.all_reduce(x, algorithm="ring"),
        lambda x: dev.all_reduce(x, pycomm.reduce_op(mixed)),
        lambda x: dev.reduce_scatter(x),
        lambda x: dev.all_gather(x),
        lambda x: dev.broadcast(x, 2),
    ):
        got, want = call(ordinary(dev, host)), call(host.copy())
        assert bits(got.get()) == bits(want)


def test_results_are_ordered_by_streams(comm):
    with two_hosts(comm, delay_s=0.001) as dev:
        for k in range(10):
            x = (symmetric, ordinary)[k % 2](dev, np.full(3000, dev.rank + 1.0 + k))
            if k % 3 == 0:
                dev.all_reduce(x, async_op=True).wait()
            else:
                dev.all_reduce(x)
            y = dev.all_gather(x)
            x[...] = -1.0
            assert (y.get() == 10 + 4 * k).all()


@pytest.mark.parametrize("what", ["copy", "record", "synchronize"])
@pytest.mark.parametrize("when", ["first", "fourth", "last"])
def test_what_fails_on_one_rank_is_told_on_all(one, what, when, monkeypatch):
    x = ordinary(one, np.ones(5000))
    one.all_reduce(x)
    with monkeypatch.context() as patch:
        let_fail(patch, what, when, one.rank == 3, lambda: one.all_reduce(x))
        with pytest.raises(pycomm.CommError, match=f"no {what} today"):
            one.all_reduce(x)


def test_different_calls_are_named_on_every_rank(one):
    one.all_reduce(ordinary(one, np.ones(3)))
    with pytest.raises(pycomm.MismatchError, match=r"rank 2: .*max.*test_device_levels.py"):
        one.all_reduce(ordinary(one, np.ones(3)), "max" if one.rank == 2 else "sum")
