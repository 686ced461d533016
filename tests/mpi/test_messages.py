"""Point-to-point messages: any tag, order, source and size; they describe themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycomm
from pycomm.types import DTYPES

SIZES = (0, 1, 1000, 4096, 4097, 300_000)


def neighbours(comm):
    """Return the next and the previous rank."""
    return (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size


def test_round_the_ring_in_every_size(comm):
    after, before = neighbours(comm)
    for size in SIZES:
        work = comm.isend(np.full(size, comm.rank, np.uint8), after)
        x = comm.recv(before)
        work.wait()
        assert x.shape == (size,) and x.dtype == np.uint8 and (x == before).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.bool])
def test_tensors_arrive_as_tensors_with_their_shape(comm, dtype):
    after, before = neighbours(comm)
    work = comm.isend(torch.ones(2, 3, 4).to(dtype), after)
    x = comm.recv(before)
    work.wait()
    assert (
        isinstance(x, torch.Tensor)
        and x.dtype == dtype
        and torch.equal(x, torch.ones(2, 3, 4).to(dtype))
    )


def test_scalars_and_every_dtype(comm):
    after, before = neighbours(comm)
    for dtype in DTYPES.values():
        x = pycomm.arrays.empty((), dtype, False).owner
        x[...] = 1
        work = comm.isend(x, after)
        y = comm.recv(before)
        work.wait()
        assert y.shape == () and y.dtype == x.dtype and y == x


def test_any_posting_order_of_tags(comm):
    after, before = neighbours(comm)
    tags = [5, 2**40, -3, 0]
    receives = [comm.irecv(before, tag) for tag in reversed(tags)]
    sends = [comm.isend(np.full(10_000 + i, i), after, tag) for i, tag in enumerate(tags)]
    for i, work in enumerate(reversed(receives)):
        assert (work.wait() == i).all() and work.wait().size == 10_000 + i
    for work in sends:
        assert work.wait() is None and work.done()


def test_sends_are_waited_for_before_receives(comm):
    after, before = neighbours(comm)
    sent = comm.isend(np.full(300_000, comm.rank), after, 6)
    received = comm.irecv(before, 6)
    sent.wait()
    assert (received.wait() == before).all()


def test_messages_of_one_tag_keep_their_order(comm):
    after, before = neighbours(comm)
    sends = [comm.isend(np.full(1 if i % 2 else 5000, i), after, 9) for i in range(200)]
    assert [int(comm.recv(before, 9)[0]) for _ in range(200)] == list(range(200))
    for work in sends:
        work.wait()


def test_from_anyone(comm):
    works = [comm.isend(np.array([comm.rank, 7]), 0, 4)]
    if comm.rank == 0:
        got = [comm.recv(pycomm.ANY, 4) for _ in range(comm.size)]
        assert sorted(int(x[0]) for x in got) == list(range(comm.size))
    for work in works:
        work.wait()


def test_into_out_also_strided(comm):
    after, before = neighbours(comm)
    out = np.zeros((4, 6))
    work = comm.isend(np.full((4, 3), comm.rank + 1.0), after)
    view = out[:, ::2]
    assert comm.recv(before, out=view) is view
    work.wait()
    assert (out[:, ::2] == before + 1).all() and (out[:, 1::2] == 0).all()


@pytest.mark.parametrize("count", [3, 10_000])
def test_another_dtype_or_shape_than_sent_is_an_error(comm, count):
    after, before = neighbours(comm)
    work = comm.isend(np.zeros(count), after)
    out = np.full(count, 5, np.float32)
    with pytest.raises(pycomm.MismatchError, match=rf"sent shape \({count},\) of float64.*float32"):
        comm.recv(before, out=out)
    work.wait()
    assert (out == 5).all()


def test_to_oneself_of_any_size(comm):
    for size in SIZES:
        comm.send(np.full(size, 3, np.int8), comm.rank, tag=1)
        assert (comm.recv(comm.rank, tag=1) == 3).all()


def test_messages_are_not_mixed_between_communicators(comm):
    other = comm.split(0)
    after, before = neighbours(comm)
    works = [comm.isend(np.array([1]), after), other.isend(np.array([2]), after)]
    assert other.recv(before)[0] == 2
    assert comm.recv(before)[0] == 1
    for work in works:
        work.wait()
    other.close()


def test_messages_go_on_while_a_collective_waits(comm):
    """Rank 0 sends to the last rank before it comes to a collective that this one has begun."""
    if comm.rank == comm.size - 1 and comm.size > 1:
        work = comm.all_reduce(np.ones(10), async_op=True)
        assert comm.recv(0, 8).shape == (100_000,)
        assert (work.wait() == comm.size).all()
    else:
        if comm.rank == 0 and comm.size > 1:
            comm.send(np.zeros(100_000), comm.size - 1, 8)
        assert (comm.all_reduce(np.ones(10)) == comm.size).all()


def test_a_rank_that_does_not_exist(comm):
    with pytest.raises(ValueError, match=f"dst={comm.size} is not one of"):
        comm.isend(np.zeros(1), comm.size)
    with pytest.raises(ValueError, match="src=-2 is not one of"):
        comm.irecv(-2)
