"""Messages of device arrays: any tag, order, source and size, in reach of each other or not."""

from __future__ import annotations

import time

import numpy as np
import pytest

import pycomm
from tests.devices.host_array import HostArray
from tests.mpi import device_pairs
from tests.mpi.device_pairs import LARGE, SIZES, host, pattern, ring
from tests.mpi.devices import ordinary, several

dev, near, make = device_pairs.dev, device_pairs.near, device_pairs.make


def test_round_the_ring_in_every_size(dev, make):
    after, before = ring(dev)
    for k, size in enumerate(SIZES):
        work = dev.isend(make(dev, pattern(size, dev.rank, k)), after)
        x = dev.recv(before)
        assert isinstance(x, HostArray) and x.shape == (size,) and x.dtype == np.uint8
        assert (x.get() == pattern(size, before, k)).all()
        assert work.wait() is None


def test_into_out_also_strided(dev, make):
    after, before = ring(dev)
    for rows in (4, 300):
        out = ordinary(dev, np.zeros((rows, 6)))
        work = dev.isend(make(dev, np.full((rows, 3), dev.rank + 1.0)), after)
        y = make(dev, np.zeros((rows, 3)))
        assert dev.recv(before, out=y) is y
        work.wait()
        assert (y.get() == before + 1).all()
        work, view = dev.isend(y, after), out[:, ::2]
        assert dev.recv(before, out=view) is view
        work.wait()
        got = out.get()
        assert (got[:, ::2] == (dev.rank - 2) % dev.size + 1).all() and (got[:, 1::2] == 0).all()


def test_strided_arrays_are_sent(dev):
    after, before = ring(dev)
    x = ordinary(dev, np.arange(2000.0).reshape(50, 40) + dev.rank)
    work = dev.isend(x[::2, 1::3], after)
    got = dev.recv(before).get()
    work.wait()
    assert (got == (np.arange(2000.0).reshape(50, 40) + before)[::2, 1::3]).all()


def test_shapes_of_no_and_of_many_dimensions(dev, make):
    after, before = ring(dev)
    for shape in ((), (2, 3, 4, 5), (0, 3)):
        work = dev.isend(make(dev, np.full(shape, dev.rank, np.int16)), after)
        x = dev.recv(before)
        work.wait()
        assert x.shape == shape and x.dtype == np.int16 and (x.get() == before).all()


def test_any_posting_order_of_tags(dev, make):
    after, before = ring(dev)
    tags = [5, 2**40, -3, 0]
    receives = [dev.irecv(before, tag) for tag in reversed(tags)]
    sizes = [10, 6000, LARGE, 5]
    arrays = [make(dev, pattern(n, dev.rank, i)) for i, n in enumerate(sizes)]
    sends = [dev.isend(x, after, tag) for x, tag in zip(arrays, tags)]
    for i, work in zip(reversed(range(4)), receives):
        assert (work.wait().get() == pattern(sizes[i], before, i)).all()
    for work in sends:
        assert work.wait(host=True) is None and work.done() and work.exception() is None


@pytest.mark.parametrize("count", [100, 10_000])
def test_what_was_sent_first_may_be_received_last(dev, make, count):
    """More than there is room for copies."""
    after, before = ring(dev)
    arrays = [make(dev, pattern(count, dev.rank, k)) for k in range(70)]
    sends = [dev.isend(x, after, k) for k, x in enumerate(arrays)]
    for k in reversed(range(70)):
        assert (dev.recv(before, k).get() == pattern(count, before, k)).all()
    for work in sends:
        work.wait()


def test_messages_of_one_tag_keep_their_order(dev):
    after, before = ring(dev)
    sends = [
        dev.isend(ordinary(dev, pattern(10 + 900 * (k % 7), 0, k)), after, 9) for k in range(60)
    ]
    for k in range(60):
        assert (dev.recv(before, 9).get() == pattern(10 + 900 * (k % 7), 0, k)).all()
    for work in sends:
        work.wait()


def test_from_anyone(dev, make):
    works = [dev.isend(make(dev, np.full(n, dev.rank)), 0, 4) for n in (3, 7000)]
    if dev.rank == 0:
        got = [dev.recv(pycomm.ANY, 4).get() for _ in range(2 * dev.size)]
        assert sorted(int(x[0]) for x in got) == sorted(2 * list(range(dev.size)))
        assert all((x == x[0]).all() for x in got)
    for work in works:
        work.wait()


def test_to_oneself_of_any_size(dev, make):
    for k, size in enumerate(SIZES):
        x = make(dev, pattern(size, dev.rank, k))
        dev.send(x, dev.rank, tag=1)
        x[...] = 0
        assert (dev.recv(dev.rank, tag=1).get() == pattern(size, dev.rank, k)).all()
    out = make(dev, np.zeros(LARGE, np.uint8))
    work = dev.irecv(dev.rank, 2, out)
    dev.send(make(dev, pattern(LARGE, 3)), dev.rank, 2)
    assert (work.wait().get() == pattern(LARGE, 3)).all()


def test_a_pair_that_comes_at_any_time(dev, make):
    several(dev)
    pairs, mate = dev.size // 2 * 2, dev.rank ^ 1
    for k in range(16 if dev.rank < pairs else 0):
        if k % 3 == dev.rank % 2:
            time.sleep(0.003)
        count = 100 + 2501 * k
        if dev.rank % 2 == 0:
            x = make(dev, pattern(count, dev.rank, k))
            dev.send(x, mate, k)
            x[...] = 0
        else:
            assert (dev.recv(mate, k).get() == pattern(count, mate, k)).all()
    dev.barrier()


def test_arrays_come_to_where_they_were_sent_from(dev, make):
    after, before = ring(dev)
    for size in SIZES:
        works = [dev.isend(x(dev, pattern(size, dev.rank)), after) for x in (host, make, host)]
        kinds = [type(dev.recv(before)) for _ in works]
        assert kinds == [np.ndarray, HostArray, np.ndarray]
        for work in works:
            work.wait()


def test_messages_are_not_mixed_between_communicators(near, make):
    other = near.split(0)
    after, before = ring(near)
    x, y = make(near, pattern(9000, near.rank, 1)), make(near, pattern(9000, near.rank, 2))
    works = [near.isend(x, after), other.isend(y, after)]
    assert (other.recv(before).get() == pattern(9000, before, 2)).all()
    assert (near.recv(before).get() == pattern(9000, before, 1)).all()
    for work in works:
        work.wait()
    other.close()


def test_a_copy_outlives_the_senders_communicator(near):
    several(near)
    other = near.split(0)
    if near.rank == 0:
        other.send(ordinary(near, pattern(3000, 0)), 1)
    if near.rank == 1:
        time.sleep(0.05)
        assert (other.recv(0).get() == pattern(3000, 0)).all()
    other.close()
    near.barrier()
