"""Streams of device messages: nobody waits but streams, and these always do."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from tests.devices.host_array import HostArray
from tests.mpi import device_pairs
from tests.mpi.device_pairs import (
    LARGE,
    by_mpi,
    held,
    in_reach,
    out_of_reach,
    pattern,
    ring,
)
from tests.mpi.devices import ordinary, runtime, several, symmetric

dev, near, make = device_pairs.dev, device_pairs.near, device_pairs.make


def wrong_messages(dev, make, rounds=12):
    """Return how many messages of any size, with arrays reused at once, are wrong here."""
    (after, before), wrong = ring(dev), 0
    for k in range(rounds):
        size = (700, 9000, 36_000)[k % 3]
        x, y = make(dev, pattern(size, dev.rank, k)), make(dev, np.zeros(size, np.uint8))
        works = [dev.irecv(before, k, y if k % 2 else None), dev.isend(x, after, k)]
        y = works[0].wait()
        works[1].wait()
        x[...] = 0
        z = HostArray(y.shape, y.dtype)
        z[...] = y
        y[...] = 1
        wrong += not (z.get() == pattern(size, before, k)).all()
    return wrong


def test_results_and_reuse_are_ordered_by_the_callers_stream(comm, make):
    with in_reach(comm, 0.001) as dev:
        assert wrong_messages(dev, make) == 0
    with out_of_reach(comm, 0.001) as dev:
        assert wrong_messages(dev, make) == 0
    with by_mpi(comm, 0.001) as dev:
        assert wrong_messages(dev, make) == 0


def test_without_its_waits_messages_would_be_wrong(comm, make):
    """The doubles do show a missing wait."""
    with in_reach(comm, 0.003) as dev:
        runtime().waits = False
        wrong = wrong_messages(dev, make)
        assert comm.all_reduce(np.array([wrong]))[0] > 0


@pytest.mark.parametrize("size", [3000, 9000, LARGE])
def test_the_host_waits_for_no_stream(near, make, size):
    """Not that of the sender, and not that of the receiver, nor for the next message."""
    after, before = ring(near)
    x, y = make(near, pattern(size, near.rank)), make(near, np.zeros(size, np.uint8))
    gate = held()
    for _ in range(3):
        works = [near.irecv(before, out=y), near.isend(x, after)]
        for work in works:
            work.wait()
        x[...] = y
        assert not any([work.done() for work in works])
    near.barrier()
    assert not gate.is_set()
    gate.set()
    assert (x.get() == pattern(size, (near.rank - 3) % near.size)).all()


def test_out_may_be_in_use_until_the_receive_is_posted(near, make):
    after, before = ring(near)
    for size in (500, 9000, LARGE):
        y, gate, other = make(near, np.zeros(size, np.uint8)), held(), runtime().new_stream()
        z = HostArray(y.shape, y.dtype)
        z[...] = y
        work = near.irecv(before, out=y)
        with runtime().using(other):
            sent = near.isend(make(near, pattern(size, near.rank)), after)
        near.barrier()
        threading.Timer(0.02, gate.set).start()
        with runtime().using(other):
            assert (work.wait().get() == pattern(size, before)).all()
            sent.wait()
        assert (z.get() == 0).all()


def test_arrays_that_are_let_go_early_are_still_read(comm, make):
    with in_reach(comm, 0.002) as dev:
        after, before = ring(dev)
        for k, size in enumerate((100, 9000, LARGE)):
            x = make(dev, pattern(size, dev.rank, k))
            dev.isend(x, after, k)
            del x
            gc.collect()
            filler = make(dev, np.full(size, 7, np.uint8))
            y = dev.irecv(before, k)
            assert (y.wait().get() == pattern(size, before, k)).all()
            del y
            gc.collect()
            assert (filler.get() == 7).all()


def test_wait_for_the_host_and_in_time(near):
    several(near)
    x = symmetric(near, pattern(LARGE, 0))
    if near.rank == 0:
        work = near.isend(x, 1)
        with pytest.raises(pycomm.CommTimeoutError, match=r"not complete after 0.02 s"):
            work.wait(0.02)
        near.barrier()
        work.wait(host=True)
        assert work.done()
    else:
        near.barrier()
    if near.rank == 1:
        work, gate = near.irecv(0), held()
        with runtime().using(runtime().new_stream()):
            assert (work.wait(host=True).get() == pattern(LARGE, 0)).all()
        gate.set()
    near.barrier()


def test_many_steps_leave_no_memory_behind(comm):
    with in_reach(comm, 0.0) as dev:
        after, before = ring(dev)
        for k in range(90):
            make, size = (symmetric, ordinary)[k % 2], (300, 9000, 36_000)[k % 3]
            work = dev.isend(make(dev, np.full(size, 1.0)), after)
            dev.recv(before)
            work.wait()
        runtime().finish()
        assert process.process_device().slabs.nbytes == 32 << 20


def test_a_view_of_the_senders_array(near):
    several(near)
    if near.rank == 0:
        x = symmetric(near, pattern(LARGE, 0))
        work = near.isend(x, 1)
        with pytest.raises(pycomm.CommTimeoutError):
            work.wait(0.05)
        near.barrier()
        work.wait()
        x[...] = 0
    else:
        if near.rank == 1:
            x = near.recv(0, copy=False)
            y = HostArray(x.shape, x.dtype)
            gate = held()
            y[...] = x
            gc.collect()
        near.barrier()
        if near.rank == 1:
            del x
            threading.Timer(0.02, gate.set).start()
            assert (y.get() == pattern(LARGE, 0)).all()
    near.barrier()


def test_only_symmetric_arrays_in_reach_are_lent(dev):
    after, before = ring(dev)
    for make, size in ((ordinary, 500), (ordinary, 9000), (symmetric, 500)):
        work = dev.isend(make(dev, pattern(size, dev.rank)), after)
        x = dev.recv(before, copy=False)
        work.wait()
        assert (x.get() == pattern(size, before)).all()


def test_a_view_by_irecv_waits_for_the_data(near):
    after, before = ring(near)
    for k in range(2):
        x, gate = symmetric(near, np.zeros(LARGE, np.uint8)), held()
        x[...] = pattern(LARGE, near.rank, k)
        receive, send = near.irecv(before, copy=False), near.isend(x, after)
        y = receive.wait()
        near.barrier()
        time.sleep(0.01)
        assert not receive.done()
        near.barrier()
        gate.set()
        assert (y.get() == pattern(LARGE, before, k)).all() and receive.done()
        del receive, y
        send.wait()
