"""Calls that cannot be done: of a closed communicator, and with arguments of another type."""

from __future__ import annotations

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
