"""Device collectives whose kernels meet: doubles of a GPU for each rank, all with access to all."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from pycomm.devices.base import DeviceError
from pycomm.types import DTYPES, ReduceOp
from tests.algorithms.reference import CASES, random_inputs
from tests.devices.host_array import HostArray
from tests.mpi.devices import doubles, ordinary, symmetric
from tests.mpi.test_reductions import bits, expected

PLACES = {"symmetric": symmetric, "ordinary": ordinary}
SHOTS = {"one shot": 1 << 20, "two shots": 0}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request):
    return request.param


@pytest.fixture(scope="module", params=SHOTS.values(), ids=SHOTS)
def dev(request, comm):
    """A communicator of doubles, a GPU each; segments are small."""
    with doubles(comm, comm.size, segment_bytes=4096, one_shot_bytes=request.param) as other:
        yield other


def runtime():
    return process.process_device().runtime


def launches(part: str = "") -> int:
    """Return how many kernels were launched here whose names have a part."""
    runtime().finish()
    return sum(part in kernel for kernel, _ in runtime().kernels.launcher.launches)


@pytest.mark.parametrize("count", [0, 1, 3, 1009, 5000])
def test_all_reduce_adds_in_rank_order(dev, make, count):
    for name in ("float32", "bfloat16", "int32"):
        for op in ("sum", "avg") if name != "int32" else ("max",):
            x = make(dev, random_inputs(dev.size, count, DTYPES[name])[dev.rank])
            assert dev.all_reduce(x, op) is x
            assert bits(x.get()) == bits(expected(dev, count, DTYPES[name], ReduceOp(op)))


@pytest.fixture(scope="module")
def shots(comm):
    """Two communicators on the same doubles: of one shot, and of two."""
    with doubles(comm, comm.size, 0.0, segment_bytes=4096) as once:
        once.all_reduce(symmetric(once, np.ones(1)))
        process.process_device().one_shot_bytes = 0
        twice = once.split(0)
        yield once, twice
        twice.close()


@pytest.mark.parametrize(("dtype", "op"), CASES, ids=lambda x: x.name)
def test_the_size_switch_changes_no_bits(shots, dtype, op):
    for dev in shots:
        x = symmetric(dev, random_inputs(dev.size, 1009, dtype)[dev.rank])
        dev.all_reduce(x, op)
        assert bits(x.get()) == bits(expected(dev, 1009, dtype, op))


def test_flags_alone_order(dev, make):
    """Flags alone order kernels and what is on their stream."""
    if dev.size == 1:
        pytest.skip("one rank waits for nobody")
    before = launches("reduce_between")
    x = make(dev, np.full(700, dev.rank + 1.0))
    for k in range(10):
        dev.all_reduce(x)
        x[...] = dev.rank + 1.0 + k
    dev.all_reduce(x)
    total = dev.size * (dev.size + 1) // 2
    assert (x.get() == total + 9 * dev.size).all()
    assert launches("reduce_between") - before >= 11


def test_streams_that_run_at_their_own_pace(comm, make):
    with doubles(comm, comm.size, delay_s=0.002, segment_bytes=4096) as dev:
        total = dev.size * (dev.size + 1) // 2
        for k in range(20):
            x = make(dev, np.full(3000, dev.rank + 1.0 + k))
            y = dev.all_gather(x)
            dev.all_reduce(x)
            assert (x.get() == total + dev.size * k).all()
            assert (y.get() == np.arange(dev.size)[:, None] + 1.0 + k).all()


def test_the_host_waits_for_no_stream(dev, make):
    x, gate = make(dev, np.full(3000, 1.0)), threading.Event()
    runtime().current.put(gate.wait)
    for _ in range(3):
        dev.all_reduce(x)
    work = dev.all_reduce(x, async_op=True)
    assert not work.done()
    dev.barrier()
    gate.set()
    assert (work.wait().get() == dev.size**4).all()


def test_communicators_on_streams_of_their_own_do_not_compete(dev):
    other = dev.split(0, key=-dev.rank)
    x, y = symmetric(dev, np.full(3000, 1.0)), symmetric(dev, np.full(3000, 1.0))
    for _ in range(5):
        works = [dev.all_reduce(x, async_op=True), other.all_reduce(y, async_op=True)]
    for work in works:
        assert (work.wait().get() == dev.size**5).all()
    other.close()


# ---- errors


@contextlib.contextmanager
def impatient(comm):
    """Give a communicator of doubles, a GPU each, whose kernels do not wait long for others."""
    with doubles(comm, comm.size, segment_bytes=4096) as patient:
        patient.world.timeout, before = 0.8, patient.world.timeout
        try:
            dev = patient.split(0)
        finally:
            patient.world.timeout = before
        yield dev
        dev.close()


def test_a_gpu_that_does_not_come_is_named_by_the_next_call(comm):
    """The last rank's stream stands still; the others give up, and all are told."""
    if comm.size == 1:
        pytest.skip("needs two ranks")
    with impatient(comm) as dev:
        x, last = symmetric(dev, np.ones(3000)), dev.size - 1
        dev.all_reduce(x)
        runtime().finish()
        gate = threading.Event()
        if dev.rank == last:
            runtime().current.put(gate.wait)
        dev.all_reduce(x)
        if dev.rank != last:
            runtime().finish()
        comm.barrier()
        with pytest.raises(pycomm.CommTimeoutError, match=rf"rank {last}'s GPU did not come to a"):
            dev.all_reduce(x)
        with pytest.raises(pycomm.CommError, match="failed before"):
            dev.barrier()
        gate.set()
        runtime().finish()
        comm.barrier()


def test_a_gpu_that_does_not_come_is_named_where_the_host_waits(comm):
    if comm.size == 1:
        pytest.skip("needs two ranks")
    with impatient(comm) as dev:
        x, last, gate = symmetric(dev, np.ones(3000)), dev.size - 1, threading.Event()
        dev.all_reduce(x)
        runtime().finish()
        comm.barrier()
        if dev.rank == last:
            runtime().current.put(gate.wait)
        work = dev.all_reduce(x, async_op=True)
        if dev.rank != last:
            with pytest.raises(pycomm.CommTimeoutError, match=rf"rank {last}'s GPU did not come"):
                work.wait(host=True)
            assert work.done() and isinstance(work.exception(), pycomm.CommTimeoutError)
        comm.barrier()
        gate.set()


def test_what_fails_before_a_call_is_told_on_all(comm, monkeypatch):
    if comm.size == 1:
        pytest.skip("needs two ranks")
    with doubles(comm, comm.size, segment_bytes=4096, one_shot_bytes=0) as dev:
        x, last = ordinary(dev, np.ones(3000)), dev.size - 1
        dev.all_reduce(x)

        def refuse(*arguments: object) -> None:
            raise DeviceError("no copy today")

        if dev.rank == last:
            monkeypatch.setattr(runtime(), "copy", refuse)
        said = "no copy today" if dev.rank == last else f"all_reduce failed on rank {last}"
        with pytest.raises(pycomm.CommError, match=said):
            dev.all_reduce(x)
        assert isinstance(x, HostArray)


def test_more_ranks_than_can_meet_are_ordered_by_hosts(comm, monkeypatch):
    from pycomm import on_device

    monkeypatch.setattr(on_device, "MOST_RANKS", 1)
    with doubles(comm, comm.size, segment_bytes=4096) as dev:
        x = symmetric(dev, np.full(3000, 1.0))
        assert (dev.all_reduce(x).get() == dev.size).all()
        assert launches("between") == 0
