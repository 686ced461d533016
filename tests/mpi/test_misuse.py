"""Calls that cannot be done: of a closed communicator, and with arguments of another type."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pycomm


@pytest.fixture
def other(comm):
    other = comm.split(0)
    yield other
    other.close()


CALLS = {
    "all_reduce": lambda c: c.all_reduce(np.ones(3)),
    "all_reduce, asynchronous": lambda c: c.all_reduce(np.ones(3), async_op=True),
    "scatter": lambda c: c.scatter(np.ones((c.size, 3))),
    "all_to_all": lambda c: c.all_to_all(np.ones(c.size), None, [1] * c.size),
    "send": lambda c: c.send(np.ones(3), 0),
    "irecv": lambda c: c.irecv(0),
    "split": lambda c: c.split(0),
    "empty": lambda c: c.empty(3),
    "explain": lambda c: c.explain("all_reduce", 4),
    "transport": lambda c: c.transport,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_closed_communicator_says_so(other, call):
    other.close()
    with pytest.raises(pycomm.CommError, match="this communicator was closed"):
        call(other)


def test_a_closed_communicator_keeps_its_counts(other):
    other.all_reduce(np.ones(3))
    other.barrier()
    before = other.stats
    other.close()
    assert other.stats == before and before.operations >= 2


def test_joining_again_after_the_end_says_that_it_was_closed(other, monkeypatch):
    monkeypatch.setattr("pycomm.startup._everyone", other)
    assert pycomm.init() is other
    other.close()
    with pytest.raises(pycomm.CommError, match="the communicator of all ranks was closed"):
        pycomm.init()


def add(a, b):
    return a + b


WRONG = {
    "root": (lambda c: c.reduce(np.ones(3), 0.0), "root=0.0 is not one of 0…"),
    "root of a broadcast": (lambda c: c.broadcast(np.ones(3), None), "root=None is not one of"),
    "dst": (lambda c: c.send(np.ones(3), "0"), "dst='0' is not one of 0…"),
    "src": (lambda c: c.recv(0.5), "src=0.5 is not one of 0…"),
    "True as root": (lambda c: c.broadcast(np.ones(3), True), "root=True is not one of 0…"),
    "False as root": (lambda c: c.reduce(np.ones(3), False), "root=False is not one of 0…"),
    "False as dst": (lambda c: c.send(np.ones(3), False), "dst=False is not one of 0…"),
    "True as src": (lambda c: c.recv(True), "src=True is not one of 0…"),
    "True as a count": (lambda c: c.all_gather(np.ones(1), counts=[True] * c.size), "integers"),
    "no op": (lambda c: c.all_reduce(np.ones(3), None), "op=None is not one of 'sum', "),
    "a function's name": (lambda c: c.all_reduce(np.ones(3), max), "(function): pass 'max'"),
    "a function": (lambda c: c.all_reduce(np.ones(3), add), "pass pycomm.reduce_op(add)"),
    "counts": (
        lambda c: c.all_gather(np.ones(4), counts=[4.0] * c.size),
        "entries, one a rank, integers, none negative",
    ),
    "no list": (lambda c: c.reduce_scatter(np.ones(4), counts=4), "counts=4 needs "),
    "send_counts": (
        lambda c: c.all_to_all(np.ones(c.size), None, [1.0] * c.size),
        "entries, one a rank, integers, none negative",
    ),
    "negative shape": (lambda c: c.empty(-1), "shape=-1 is not an int or a sequence of them"),
    "fractional shape": (lambda c: c.empty((2, 1.5)), "shape=(2, 1.5) is not an int"),
    "negative bytes": (lambda c: c.explain("all_reduce", -4), "nbytes=-4 is not a number of"),
    "fractional bytes": (lambda c: c.explain("all_reduce", 4.5), "nbytes=4.5 is not a number"),
}


@pytest.mark.parametrize(("call", "said"), WRONG.values(), ids=WRONG.keys())
def test_arguments_of_another_type_are_named(comm, call, said):
    with pytest.raises(pycomm.ArgumentError, match=re.escape(said)):
        call(comm)
    comm.barrier()


def test_dtypes_that_are_none_are_named(comm):
    with pytest.raises(pycomm.UnsupportedError, match="dtype 'foo' is not one of bool, int8"):
        comm.empty(3, "foo")


def test_integers_of_every_kind_are_numbers(comm):
    last = np.int64(comm.size - 1)
    assert comm.empty(np.int64(3)).shape == (3,)
    assert comm.broadcast(np.full(3, comm.rank), last)[0] == last
    assert (comm.reduce(np.ones(3), last) is None) == (comm.rank != last)
    assert (comm.gather(np.ones(3), last) is None) == (comm.rank != last)
    assert comm.scatter(np.ones((comm.size, 2)), last).tolist() == [1, 1]
    assert len(comm.all_gather(np.ones(2), counts=np.full(comm.size, 2))) == 2 * comm.size
    work = comm.isend(np.ones(3), np.int64(comm.rank))
    assert comm.recv(np.int64(comm.rank)).tolist() == [1, 1, 1]
    work.wait()
    comm.send(np.ones(3), np.int64(comm.rank))
    assert comm.irecv(np.uint8(comm.rank)).wait().tolist() == [1, 1, 1]
