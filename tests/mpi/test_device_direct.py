"""Device messages that MPI itself brings: where both ends' libraries say that they can, only there.

Those here take no memory of GPUs, but all takes that of the doubles. How such messages behave is in
the tests of all device messages ("by MPI").
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

import pycomm
from pycomm.transport.device_mail import ROOM_MESSAGES, DeviceMail
from pycomm.transport.mailbox import INLINE_BYTES
from pycomm.transport.mpi import takes_gpus
from tests.devices.host_array import HostArray
from tests.mpi.device_pairs import LARGE, PLACES, SIZES, by_mpi, held, out_of_reach, pattern, ring
from tests.mpi.devices import ordinary, runtime, several, symmetric


@pytest.fixture
def dev(comm):
    several(comm)
    with by_mpi(comm) as other:
        yield other


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request):
    return request.param


@pytest.fixture
def given(comm, monkeypatch):
    """What the wire was given to send or to receive: addresses and sizes."""
    wire, seen = comm.world.wire, []

    def seeing(post):
        def seen_post(data, peer, tag):
            seen.append((data.ctypes.data, data.nbytes))
            return post(data, peer, tag)

        return seen_post

    for name in ("isend", "irecv"):
        monkeypatch.setattr(wire, name, seeing(getattr(wire, name)))
    return seen


def once_round(dev, make, size=LARGE, k=0):
    """Send an array to the next rank, out of one into another; return both."""
    after, before = ring(dev)
    x, y = make(dev, pattern(size, dev.rank, k)), make(dev, np.zeros(size, np.uint8))
    works = [dev.irecv(before, k, y), dev.isend(x, after, k)]
    for work in works:
        work.wait(host=True)
    assert (y.get() == pattern(size, before, k)).all()
    return x, y


def test_mpi_gets_the_addresses_and_no_room_is_taken(dev, given):
    for k in range(3):
        x, y = once_round(dev, symmetric, k=k)
        assert {(x.data.ptr, LARGE), (y.data.ptr, LARGE)} <= set(given)
    assert not runtime().pinned


def test_every_size_goes_so(dev, make, given):
    """Small ones, too: the host may not look into a GPU's array to put it behind a header."""
    for k, size in enumerate(SIZES):
        given.clear()
        _, y = once_round(dev, make, size, k)
        assert (y.data.ptr, size) in given
    assert not runtime().pinned and min(SIZES[1:]) < INLINE_BYTES


def test_the_libraries_here_say_that_they_take_none(comm, given):
    several(comm)
    assert not takes_gpus(MPI) and not comm.world.wire.takes_gpus
    with out_of_reach(comm) as dev:
        x, y = once_round(dev, symmetric)
        assert not {(x.data.ptr, LARGE), (y.data.ptr, LARGE)} & set(given)
        assert runtime().pinned


@pytest.mark.parametrize("who", [0, 1])
def test_if_one_end_cannot_the_host_brings_it(comm, given, who):
    """Both ways; the other ranks' messages go on as they did."""
    several(comm)
    with by_mpi(comm, says_so=comm.rank != who) as dev:
        after, before = ring(dev)
        for k in range(2):
            x, y = once_round(dev, symmetric, k=k)
            assert ((x.data.ptr, LARGE) in given) == (who not in (dev.rank, after))
            assert ((y.data.ptr, LARGE) in given) == (who not in (dev.rank, before))


def test_long_messages_are_cut(dev, make, monkeypatch):
    short = replace(dev.world.config, max_message_bytes=3000)
    monkeypatch.setattr(dev.world.wire, "_config", short)
    for k, size in enumerate((2999, 3000, 3001, LARGE)):
        once_round(dev, make, size, k)


def wrong_messages(dev, make):
    """Return how many messages are wrong here, of arrays that are in use until they go."""
    (after, before), wrong = ring(dev), 0
    for k in range(8):
        x, y = make(dev, np.zeros(9000, np.uint8)), make(dev, np.zeros(9000, np.uint8))
        z = HostArray(y.shape, y.dtype)
        x[...] = pattern(9000, dev.rank, k)
        y[...] = 5
        works = [dev.irecv(before, k, y), dev.isend(x, after, k)]
        for work in works:
            work.wait()
        z[...] = y
        wrong += not (z.get() == pattern(9000, before, k)).all()
    return wrong


def test_without_the_hosts_wait_messages_would_be_wrong(comm, make, monkeypatch):
    """The doubles do show a missing wait, before MPI reads or writes."""

    def hurry(self, event):
        yield from ()

    several(comm)
    with by_mpi(comm, 0.003) as dev:
        assert comm.all_reduce(np.array([wrong_messages(dev, make)]))[0] == 0
        monkeypatch.setattr(DeviceMail, "until", hurry)
        assert comm.all_reduce(np.array([wrong_messages(dev, make)]))[0] > 0


def test_mpi_reads_no_array_before_it_is_there(dev, make):
    after, before = ring(dev)
    x, gate = make(dev, np.zeros(LARGE, np.uint8)), held()
    x[...] = pattern(LARGE, dev.rank)
    y = HostArray((LARGE,), np.uint8)
    with runtime().using(runtime().new_stream()):
        receive = dev.irecv(before, out=y)
    send = dev.isend(x, after)
    with pytest.raises(pycomm.CommTimeoutError, match=r"not complete after 0.02 s"):
        receive.wait(0.02)
    dev.barrier()
    gate.set()
    assert (receive.wait(host=True).get() == pattern(LARGE, before)).all()
    send.wait()


def test_mpi_writes_to_no_array_that_is_in_use(dev, make):
    after, before = ring(dev)
    y, gate = make(dev, np.full(LARGE, 3, np.uint8)), held()
    z = HostArray(y.shape, y.dtype)
    z[...] = y
    receive, other = dev.irecv(before, out=y), runtime().new_stream()
    with runtime().using(other):
        send = dev.isend(make(dev, pattern(LARGE, dev.rank)), after)
    time.sleep(0.02)
    threading.Timer(0.02, gate.set).start()
    assert (receive.wait().get() == pattern(LARGE, before)).all()
    with runtime().using(other):
        send.wait()
    assert (z.get() == 3).all()


def test_both_send_first_where_a_copy_waits(dev):
    """As in reach: up to a segment, of ordinary arrays, `send` does not wait for the receiver."""
    after, before = ring(dev)
    for _ in range(ROOM_MESSAGES):
        once_round(dev, ordinary, 10)
    for k in range(3):
        dev.send(ordinary(dev, pattern(3000, dev.rank, k)), after, k)
    for k in reversed(range(3)):
        assert (dev.recv(before, k).get() == pattern(3000, before, k)).all()


def test_a_message_that_nobody_wants_is_not_sent(dev, given):
    after, before = ring(dev)
    once_round(dev, ordinary)
    given.clear()
    work = dev.isend(symmetric(dev, np.zeros(LARGE)), after)
    with pytest.raises(pycomm.MismatchError, match="an array on a GPU with tag 0"):
        dev.recv(before, 0, np.zeros(LARGE))
    work.wait()
    assert not [nbytes for _, nbytes in given if nbytes == 8 * LARGE]
    once_round(dev, ordinary)


def test_a_receive_that_was_given_up_is_still_there_for_mpi(comm):
    """Its sender's stream is late: the receiver is told, and MPI may write there yet."""
    several(comm)
    with by_mpi(comm) as dev:
        dev.world.timeout, before = 0.5, dev.world.timeout
        slow = dev.split(0)
        dev.world.timeout = before
        if dev.rank == 0:
            y = ordinary(dev, np.zeros(LARGE, np.uint8))
            with pytest.raises(pycomm.CommTimeoutError, match="rank 0 receives from rank 1 with"):
                slow.recv(1, 0, y)
        if dev.rank == 1:
            gate = held()
            work = slow.isend(ordinary(dev, pattern(LARGE, 1)), 0)
        comm.barrier()
        if dev.rank == 1:
            gate.set()
            work.wait()
        if dev.rank == 0:
            left, end = comm.world.device_mail._left, time.monotonic() + 10
            while not all([course.advance() for course in left]):
                assert time.monotonic() < end
            assert (y.get() == pattern(LARGE, 1)).all()
        comm.barrier()
        slow.close()
