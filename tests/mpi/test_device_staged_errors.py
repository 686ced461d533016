"""Device arrays through the hosts: what all ranks are told of errors."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

import pycomm
from pycomm.devices.base import DeviceError, Stream
from tests.mpi.devices import apart, let_fail, ordinary, runtime, several, symmetric


@pytest.fixture
def one(comm):
    """A communicator of the test's own, to be broken."""
    with apart(comm) as other:
        yield other


def device_sum(c, shape=4, **options):
    return c.all_reduce(symmetric(c, np.ones(shape)), **options)


DIFFERENT = {
    "another size": lambda c: device_sum(c, 4 + (c.rank == 0)),
    "another op": lambda c: device_sum(c, op="max" if c.rank == 0 else "sum"),
    "another algorithm": lambda c: device_sum(c, algorithm="ring" if c.rank else "pairwise"),
    "another collective": lambda c: (
        device_sum(c) if c.rank else c.all_gather(symmetric(c, np.ones(4)))
    ),
    "an array of the host": lambda c: device_sum(c) if c.rank else c.all_reduce(np.ones(4)),
    "a barrier, and asynchronously": lambda c: (
        device_sum(c, async_op=True).wait() if c.rank else c.barrier()
    ),
}


@pytest.mark.parametrize("call", DIFFERENT.values(), ids=DIFFERENT)
def test_different_calls_are_named_on_every_rank(one, call):
    several(one)
    device_sum(one)
    with pytest.raises(pycomm.MismatchError) as error:
        call(one)
    told = str(error.value)
    assert re.search(r"rank 1: all_reduce\(.*algorithm='staged .* at .*_staged_errors.py:", told)
    assert re.search(r"rank 0: .*test_device_staged_errors.py:\d+", told), told
    with pytest.raises(pycomm.CommError, match="failed before"):
        device_sum(one)


FAILURES = [("copy", 5000), ("synchronize", 5000), ("record", 5000), ("record", 0)]


@pytest.mark.parametrize(("what", "count"), FAILURES)
@pytest.mark.parametrize("when", ["first", "fourth", "last"])
def test_what_fails_on_one_rank_is_told_on_all(one, what, count, when, monkeypatch):
    several(one)
    x, last = ordinary(one, np.ones(count)), one.size - 1
    one.all_reduce(x)
    with monkeypatch.context() as patch:
        let_fail(patch, what, when, one.rank == last, lambda: one.all_reduce(x))
        own = f"no {what} today" if one.rank == last else f"rank {last}: no {what} today"
        with pytest.raises(pycomm.CommError, match=own):
            one.all_reduce(x)
    with pytest.raises(pycomm.CommError, match="failed before"):
        one.barrier()


def test_no_copy_is_under_way_after_an_error(one, monkeypatch):
    """The arrays are the caller's again."""
    several(one)
    x = ordinary(one, np.ones(5000))
    one.all_reduce(x)
    under_way, copy, synchronize = [], runtime().copy, runtime().synchronize

    def slow_copy(target: int, source: int, nbytes: int, stream: Stream) -> None:
        under_way.append(target)
        stream.owner.put(lambda: time.sleep(0.02))
        copy(target, source, nbytes, stream)
        stream.owner.put(lambda: under_way.remove(target))

    def refuse_once(event: object) -> None:
        monkeypatch.setattr(runtime(), "synchronize", synchronize)
        raise DeviceError("no synchronize today")

    monkeypatch.setattr(runtime(), "copy", slow_copy)
    if one.rank == 0:
        monkeypatch.setattr(runtime(), "synchronize", refuse_once)
    with pytest.raises(pycomm.CommError, match="no synchronize today"):
        one.all_reduce(x)
    assert not under_way


def test_memory_that_cannot_be_locked_is_told_on_all(one, monkeypatch):
    several(one)

    def refuse_third(address: int, nbytes: int) -> None:
        if len(runtime().pinned) == 2:
            raise DeviceError("page-locking 4096 bytes of the host failed")
        real(address, nbytes)

    real = runtime().pin
    if one.rank == 0:
        monkeypatch.setattr(runtime(), "pin", refuse_third)
    own = "" if one.rank == 0 else "rank 0: "
    with pytest.raises(pycomm.CommError, match=own + "page-locking 4096 bytes"):
        device_sum(one)
    assert not runtime().pinned


def test_arguments_are_checked_before_anything_is_sent(one):
    several(one)
    for options, said in (
        ({"algorithm": "rings"}, "algorithm='rings' does not exist for all_reduce"),
        ({"order": "ring"}, "order='ring' is not 'rank'"),
        ({"order": "rank", "algorithm": "ring"}, "adds in ring order, not in order='rank'"),
    ):
        with pytest.raises(pycomm.ArgumentError, match=re.escape(said)):
            device_sum(one, **options)
    assert (device_sum(one).get() == one.size).all()
