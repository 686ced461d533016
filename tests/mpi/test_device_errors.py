"""Device arrays in calls that cannot be done: every rank is told, nothing hangs."""

from __future__ import annotations

import os
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from pycomm.devices.base import DeviceError
from pycomm.observe import flight
from tests.devices.host_array import HostArray
from tests.mpi.devices import apart, doubles, ordinary, several, symmetric


@pytest.fixture
def dev(comm):
    with doubles(comm, segment_bytes=4096) as other:
        yield other


def device_sum(c, shape=4, **options):
    return c.all_reduce(symmetric(c, np.ones(shape)), **options)


DIFFERENT = {
    "another size": lambda c: device_sum(c, 4 + (c.rank == 0)),
    "another op": lambda c: device_sum(c, op="max" if c.rank == 0 else "sum"),
    "another factor": lambda c: device_sum(c, op=pycomm.premul_sum(float(c.rank == 0))),
    "another dtype": lambda c: c.all_reduce(symmetric(c, np.ones(4, "fi"[c.rank == 0]))),
    "another collective": lambda c: (
        device_sum(c) if c.rank else c.all_gather(symmetric(c, np.ones(4)))
    ),
    "another root": lambda c: c.broadcast(symmetric(c, np.ones(4)), int(c.rank == 0)),
    "an array of the host": lambda c: device_sum(c) if c.rank else c.all_reduce(np.ones(4)),
    "an array of the host, asynchronously": lambda c: (
        device_sum(c) if c.rank else c.all_reduce(np.ones(4), async_op=True).wait()
    ),
    "a barrier": lambda c: device_sum(c) if c.rank else c.barrier(),
    "scatter into another shape": lambda c: c.scatter(
        symmetric(c, np.ones((c.size, 2))) if c.rank == 0 else None,
        out=symmetric(c, np.ones(3)) if c.rank == c.size - 1 else None,
    ),
    "scatter into an array of the host": lambda c: c.scatter(
        symmetric(c, np.ones((c.size, 2))) if c.rank == 0 else None,
        out=np.ones(2) if c.rank == c.size - 1 else None,
    ),
    "scatter of an array of the host": lambda c: c.scatter(
        np.ones((c.size, 2)) if c.rank == 0 else None,
        out=symmetric(c, np.ones(2)) if c.rank == c.size - 1 else None,
    ),
    "scatter of another root": lambda c: c.scatter(
        symmetric(c, np.ones((c.size, 2))), int(c.rank == 0), symmetric(c, np.ones(2))
    ),
}


@pytest.mark.parametrize("call", DIFFERENT.values(), ids=DIFFERENT)
@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
def test_different_calls_are_named_on_every_rank(dev, call, first):
    several(dev)
    if not first:
        device_sum(dev)
    with pytest.raises(pycomm.MismatchError) as error:
        call(dev)
    told = str(error.value)
    assert re.search(r"rank 1: .*test_device_errors.py:\d+", told), told
    assert "device='cuda'" in told or "scatter(root=1) at" in told, told
    with pytest.raises(pycomm.CommError, match="failed before"):
        device_sum(dev)


@pytest.mark.parametrize("opened", [doubles, apart])
def test_ranks_that_do_not_come_are_named(comm, opened):
    several(comm)
    with opened(comm) as dev:
        device_sum(dev)
        dev.world.timeout, before = 0.5, dev.world.timeout
        try:
            slow = dev.split(0)
        finally:
            dev.world.timeout = before
        if dev.rank > 0:
            time.sleep(1.0)
        else:
            named = "rank 1 did not come to all_reduce of arrays on a GPU|waits|waited for rank"
            with pytest.raises(pycomm.CommTimeoutError, match=named):
                device_sum(slow)
        comm.barrier()


def test_a_rank_that_left_is_named(dev, comm):
    several(comm)
    if not comm.config.shared_memory:
        pytest.skip("who has left is known from shared memory")
    device_sum(dev)
    if dev.rank == 0:
        dev.close()
    else:
        time.sleep(0.05)
        with pytest.raises((pycomm.DepartedError, pycomm.CommTimeoutError)):
            device_sum(dev)
    comm.barrier()


@pytest.mark.parametrize("make", [symmetric, ordinary])
def test_what_fails_on_one_rank_is_told_on_all(dev, make, monkeypatch):
    """Here the launch of a kernel; the others' arrays may hold anything then."""
    several(dev)
    runtime, last = process.process_device().runtime, dev.size - 1
    x = make(dev, np.ones(3000))

    def refuse(*arguments: object) -> None:
        raise DeviceError("no kernel today")

    if dev.rank == last:
        monkeypatch.setattr(runtime, "record", refuse)
    own = "no kernel today" if dev.rank == last else f"rank {last}: no kernel today"
    with pytest.raises(pycomm.CommError, match=own):
        dev.all_reduce(x)
    with pytest.raises(pycomm.CommError, match="failed before"):
        dev.barrier()


def test_memory_of_others_that_cannot_be_opened_is_told_on_all(dev, monkeypatch):
    several(dev)

    def refuse(handle: bytes) -> None:
        raise DeviceError("opening 33554432 bytes of another process failed")

    if dev.rank == 0:
        monkeypatch.setattr(process.process_device().runtime, "open_memory", refuse)
    own = "" if dev.rank == 0 else "rank 0: "
    with pytest.raises(pycomm.CommError, match=own + "opening 33554432 bytes of another process"):
        device_sum(dev)


def test_no_memory_left_says_rank_and_sizes(dev):
    with pytest.raises(DeviceError, match=rf"rank {dev.rank}: cannot allocate \d+ bytes on the do"):
        dev.empty(1 << 29, "float64", device="cuda")
    device_sum(dev)


def test_no_memory_for_the_ring_is_told_on_all(comm):
    several(comm)
    with doubles(comm, segment_bytes=4096) as dev:
        if dev.rank == 0:
            process.process_device().runtime._free = 0
        own = "cannot allocate" if dev.rank == 0 else "rank 0: cannot allocate"
        with pytest.raises(pycomm.CommError, match=own):
            dev.all_reduce(ordinary(dev, np.ones(10)))


WRONG = {
    "algorithm": (lambda c, x: c.all_reduce(x, algorithm="ring"), "'ring' does not exist for arr"),
    "out on the host": (
        lambda c, x: c.all_gather(x, np.empty((c.size, 4))),
        "x is on cuda:0, but out= on the host",
    ),
    "x on the host": (
        lambda c, x: c.reduce_scatter(np.ones(4 * c.size), out=x),
        "x is on the host, but out= on cuda:0",
    ),
    "no such device": (lambda c, x: c.empty(3, device="tpu"), "device='tpu' is not 'cpu', 'cuda'"),
    "another GPU": (lambda c, x: c.empty(3, device="cuda:3"), "but this rank uses cuda:0"),
    "op": (lambda c, x: c.all_reduce(x, "mean"), "op='mean' is not one of"),
}


@pytest.mark.parametrize(("call", "said"), WRONG.values(), ids=WRONG.keys())
def test_arguments_are_checked_before_anything_is_sent(dev, call, said):
    with pytest.raises(pycomm.ArgumentError, match=re.escape(said)):
        call(dev, symmetric(dev, np.ones(4)))
    device_sum(dev)


def test_an_array_on_another_gpu_than_the_ranks(dev):
    x = HostArray.put(np.ones(4))
    x.device = SimpleNamespace(id=1)
    with pytest.raises(pycomm.ArgumentError, match=f"rank {dev.rank}: an array is on cuda:1, but"):
        dev.all_reduce(x)
    device_sum(dev)


def test_the_flight_recorder_names_the_call(dev):
    device_sum(dev, 8)
    last = flight.read(os.getpid())["operations"][-1]
    assert (last["kind"], last["op"], last["algorithm"]) == ("all_reduce", "sum", "device")
    assert last["bytes"] == 64 and "test_device_errors.py" in last["site"]


def test_calls_are_counted(dev):
    before = dev.stats.operations
    device_sum(dev)
    dev.all_gather(symmetric(dev, np.ones(4)))
    assert dev.stats.operations == before + 2
