"""Device messages that make progress meanwhile, and those that cannot be delivered."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from pycomm.observe import flight
from tests.devices.host_array import HostArray
from tests.mpi import device_pairs
from tests.mpi.device_pairs import LARGE, in_reach, pattern, ring
from tests.mpi.devices import ordinary, several, symmetric

dev, near, make = device_pairs.dev, device_pairs.near, device_pairs.make


def test_messages_move_while_their_receiver_waits_in_a_collective(dev, make):
    several(dev)
    works = []
    if dev.rank == 1:
        works = [dev.irecv(0, k, make(dev, np.zeros(LARGE, np.uint8))) for k in range(2)]
        works.append(dev.irecv(0, 2))
    if dev.rank == 0:
        time.sleep(0.05)
        for k in range(3):
            dev.send(make(dev, pattern(LARGE, 0, k)), 1, k)
    dev.barrier()
    for k, work in enumerate(works):
        assert (work.wait().get() == pattern(LARGE, 0, k)).all()


def test_both_send_first_with_receives_posted(dev, make):
    after, before = ring(dev)
    work = dev.irecv(before)
    dev.send(make(dev, pattern(LARGE, dev.rank)), after)
    assert (work.wait().get() == pattern(LARGE, before)).all()


@pytest.mark.parametrize("size", [3, LARGE])
def test_another_dtype_or_shape_than_sent_is_an_error(dev, make, size):
    after, before = ring(dev)
    work = dev.isend(make(dev, np.zeros(size)), after)
    out = make(dev, np.full(size, 5, np.float32))
    with pytest.raises(pycomm.MismatchError, match=rf"sent shape \({size},\) of float64.*float32"):
        dev.recv(before, out=out)
    work.wait()
    assert (out.get() == 5).all()
    work = dev.isend(make(dev, np.ones(size)), after)
    assert (dev.recv(before).get() == 1).all()
    work.wait()


@pytest.mark.parametrize("size", [3, LARGE])
def test_one_end_on_the_host_is_an_error_for_the_receiver(dev, make, size):
    """Whether the receive is posted first or not; the sender goes on, and so does what follows."""
    after, before = ring(dev)
    for receive in (dev.recv, lambda *where: dev.irecv(*where).wait()):
        out = np.full(size, 5.0)
        work = dev.isend(make(dev, np.zeros(size)), after, 2)
        with pytest.raises(
            pycomm.MismatchError,
            match=f"{before} sent an array on a GPU with tag 2, but out= is on the h",
        ):
            receive(before, 2, out)
        work.wait()
        late = make(dev, out)
        work = dev.isend(np.zeros(size), after, 3)
        with pytest.raises(
            pycomm.MismatchError,
            match=f"{before} sent an array on the host with tag 3, but out= is on c",
        ):
            receive(before, 3, late)
        work.wait()
        assert (out == 5).all() and (late.get() == 5).all()
    first = dev.irecv(before, 4, out)
    work = dev.isend(make(dev, np.zeros(size)), after, 4)
    with pytest.raises(pycomm.MismatchError, match="sent an array on a GPU with tag 4"):
        first.wait()
    work.wait()
    assert (out == 5).all()


def test_a_rank_without_a_gpu_is_told_what_was_sent(comm):
    several(comm)
    with in_reach(comm) as dev:
        if dev.rank == 0:
            dev.send(symmetric(dev, np.ones(LARGE)), 1, 4)
            dev.send(ordinary(dev, np.ones(3)), 1, 5)
        if dev.rank == 1:
            mine, _ = process._device, process.use(None)
            try:
                with pytest.raises(pycomm.MismatchError, match="an array on a GPU with tag 4"):
                    dev.recv(0, 4, np.zeros(LARGE))
                with pytest.raises(
                    pycomm.CommError,
                    match=r"rank 1: rank 0 .* shape \(3,\) of float64, but this .* no GPU",
                ):
                    dev.recv(0, 5)
            finally:
                process.use(mine)
        comm.barrier()


def test_ranks_that_wait_for_each_other_are_told(near, comm):
    several(comm)
    if not comm.config.shared_memory:
        pytest.skip("who waits for whom is known from shared memory")
    if near.rank < 2:
        with pytest.raises(pycomm.DeadlockError, match="processes wait for each other in a cycle"):
            near.send(symmetric(near, np.ones(LARGE)), 1 - near.rank)
    comm.barrier()


def test_a_receiver_that_left_is_named(near, comm):
    several(comm)
    if not comm.config.shared_memory:
        pytest.skip("who has left is known from shared memory")
    if near.rank == 1:
        near.close()
    if near.rank > 0:
        time.sleep(1.0)  # who waited for rank 0 meanwhile would make a circle with it
    else:
        with pytest.raises(pycomm.DepartedError, match="rank 0 sends to rank 1.* rank 1 has left"):
            near.send(symmetric(near, np.ones(LARGE)), 1)
        with pytest.raises(pycomm.CommError, match="failed before"):
            near.isend(symmetric(near, np.ones(3)), 1)
    comm.barrier()


def test_a_message_that_does_not_come_in_time(comm):
    several(comm)
    with in_reach(comm) as dev:
        dev.world.timeout, before = 0.5, dev.world.timeout
        try:
            slow = dev.split(0)
        finally:
            dev.world.timeout = before
        if dev.rank == 0:
            with pytest.raises(
                pycomm.CommTimeoutError, match="receives from rank 1 with tag 3: no"
            ):
                slow.recv(1, 3, symmetric(dev, np.ones(3)))
        else:
            time.sleep(1.0)
        comm.barrier()
        slow.close()


def test_arguments_are_checked_before_anything_is_sent(near):
    x = HostArray.put(np.ones(4))
    with pytest.raises(ValueError, match=f"dst={near.size} is not one of"):
        near.isend(x, near.size)
    with pytest.raises(pycomm.CommError, match="is not an integer of 64 bits"):
        near.irecv(near.rank, "a", x)
    x.device = SimpleNamespace(id=1)
    for call in (near.isend, lambda x, rank: near.irecv(rank, out=x)):
        with pytest.raises(
            pycomm.ArgumentError, match=f"rank {near.rank}: an array is on cuda:1, "
        ):
            call(x, near.rank)


def test_messages_are_counted_and_recorded(near):
    after, before = ring(near)
    start = near.stats.bytes_sent
    work = near.isend(ordinary(near, np.ones(100)), after, 7)
    near.recv(before, 7)
    work.wait()
    assert near.stats.bytes_sent == start + 800
    done = {o["kind"]: o for o in flight.read(os.getpid())["operations"][-2:]}
    for kind in ("send", "recv"):
        record = done[kind]
        assert (record["dtype"], record["bytes"], record["state"]) == ("float64", 800, "done")
        assert record["tag"] == 7
