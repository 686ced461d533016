"""Streams of device collectives: nobody waits but streams, and these always do."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from tests.devices.host_array import HostArray
from tests.mpi.devices import doubles, ordinary, symmetric

PLACES = {"symmetric": symmetric, "ordinary": ordinary}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request):
    return request.param


def runtime():
    return process.process_device().runtime


def held() -> threading.Event:
    """Hold the current stream until the event returned is set."""
    gate = threading.Event()
    runtime().current.put(gate.wait)
    return gate


def wrong_sums(dev: pycomm.Communicator, make, rounds: int = 30) -> int:
    """Return in how many of so many collectives, one after the other, this rank's sum is wrong."""
    total, wrong = dev.size * (dev.size + 1) // 2, 0
    for k in range(rounds):
        x = make(dev, np.full(3000, dev.rank + 1.0 + k))
        dev.all_reduce(x)
        wrong += not (x.get() == total + dev.size * k).all()
    return wrong


def test_results_are_ordered_by_the_callers_stream(comm, make):
    with doubles(comm, delay_s=0.001, segment_bytes=4096) as dev:
        assert wrong_sums(dev, make) == 0


def test_without_its_waits_results_would_be_wrong(comm, make):
    """The doubles do show a missing wait."""
    if comm.size == 1:
        pytest.skip("one rank waits for nobody")
    with doubles(comm, delay_s=0.003, segment_bytes=4096) as dev:
        runtime().waits = False
        wrong = wrong_sums(dev, make)
        runtime().waits = True
        assert comm.all_reduce(np.array([wrong]))[0] > 0


def test_the_host_waits_for_no_stream(comm, make):
    with doubles(comm, segment_bytes=4096) as dev:
        x = make(dev, np.full(3000, 1.0))
        gate = held()
        for _ in range(3):
            dev.all_reduce(x)
        y = dev.all_gather(x)
        work = dev.all_reduce(x, async_op=True)
        assert not work.done() and not gate.is_set()
        comm.barrier()
        gate.set()
        work.wait()
        assert (x.get() == comm.size**4).all() and (y.get() == comm.size**3).all()


def test_work_makes_the_current_stream_wait_and_only_that(comm, make):
    with doubles(comm, segment_bytes=4096) as dev:
        x, other = make(dev, np.full(3000, dev.rank + 1.0)), runtime().new_stream()
        gate = held()
        work = dev.all_reduce(x, async_op=True)
        assert work.exception() is None and not work.done()
        with pytest.raises(pycomm.CommTimeoutError, match=r"not complete after 0.01 s"):
            work.wait(0.01, host=True)
        comm.barrier()
        with runtime().using(other):
            assert work.wait() is x
            threading.Timer(0.02, gate.set).start()
            assert (x.get() == dev.size * (dev.size + 1) // 2).all()
        assert work.wait(host=True) is x
        assert work.done() and work.exception() is None


def test_asynchronous_and_other_operations_keep_their_order(comm, make):
    with doubles(comm, segment_bytes=4096) as dev:
        x = make(dev, np.full(2000, 1.0))
        for _ in range(5):
            work = dev.all_reduce(x, async_op=True)
            y = ordinary(dev, np.full(2000, dev.rank + 1.0))
            dev.all_reduce(y)
            work.wait()
            assert (y.get() == dev.size * (dev.size + 1) // 2).all()
        host = np.full(3, 1.0)
        before = comm.all_reduce(host, async_op=True)
        assert (x.get() == dev.size**5).all()
        before.wait()


def test_arrays_that_are_let_go_early_are_still_read(comm, make):
    with doubles(comm, delay_s=0.002, segment_bytes=4096) as dev:
        works = []
        for k in range(4):
            x = make(dev, np.full(600, dev.rank + 1.0 + k))
            works.append(dev.all_gather(x, async_op=True))
            del x
            filler = make(dev, np.full(600, -1.0))
        want = np.arange(1.0, dev.size + 1)[:, None]
        for k, work in enumerate(works):
            assert (work.wait().get() == want + k).all()
        assert (filler.get() == -1).all()


def test_strided_results_are_copied_back_by_wait(comm):
    with doubles(comm, segment_bytes=4096) as dev:
        x = ordinary(dev, np.full((40, 40), 1.0))
        work = dev.all_reduce(x[::2, ::2], async_op=True)
        assert work.wait().shape == (20, 20)
        assert (x.get()[::2, ::2] == dev.size).all() and (x.get()[1::2] == 1).all()


def test_many_steps_leave_no_memory_behind(comm):
    with doubles(comm, delay_s=0.0, segment_bytes=4096) as dev:
        slabs = process.process_device().slabs
        for k in range(200):
            x = symmetric(dev, np.full(5000 + k % 7, 1.0))
            dev.all_reduce(x, async_op=k % 2 == 0)
            dev.all_reduce(ordinary(dev, np.full(100, 1.0)))
        runtime().finish()
        assert slabs.nbytes == 32 << 20


def test_late_ranks_are_waited_for(comm, make):
    with doubles(comm, segment_bytes=4096) as dev:
        for late in range(dev.size):
            x = make(dev, np.full(1000, 1.0))
            if dev.rank == late:
                time.sleep(0.03)
                gate = held()
                threading.Timer(0.03, gate.set).start()
            assert (dev.all_reduce(x).get() == dev.size).all()


def test_two_communicators_on_one_device(comm):
    with doubles(comm, segment_bytes=4096) as dev:
        other = dev.split(0, key=-dev.rank)
        x, y = symmetric(dev, np.full(1000, 1.0)), symmetric(dev, np.full(1000, other.rank + 0.0))
        for _ in range(3):
            dev.all_reduce(x)
            got = other.all_gather(y)
            assert (got.get() == np.arange(dev.size)[:, None]).all()
        assert (x.get() == dev.size**3).all()
        assert isinstance(got, HostArray)
        other.close()


def test_memory_used_on_another_stream_is_not_reused_before_that(comm):
    with doubles(comm, segment_bytes=4096) as dev:
        x = symmetric(dev, np.full(3000, dev.rank + 1.0))
        address, other = x.data.ptr, runtime().new_stream()
        runtime().finish()
        with runtime().using(other):
            gate = held()
            dev.all_reduce(x)
            y = HostArray(x.shape, x.dtype)
            y[...] = x
        del x
        threading.Timer(0.05, gate.set).start()
        z = symmetric(dev, np.full(3000, -1.0))
        assert z.data.ptr == address
        assert (z.get() == -1).all()
        with runtime().using(other):
            assert (y.get() == dev.size * (dev.size + 1) // 2).all()
