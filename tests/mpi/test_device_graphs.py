"""Device collectives captured into CUDA graphs, whose kernels meet: doubles of a GPU each."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from tests.mpi.devices import doubles, ordinary, symmetric

SHOTS = {"one shot": 1 << 20, "two shots": 0}


@pytest.fixture(scope="module", params=SHOTS.values(), ids=SHOTS)
def dev(request, comm):
    """A communicator of doubles, a GPU each; segments are small."""
    with doubles(comm, comm.size, segment_bytes=4096, one_shot_bytes=request.param) as other:
        yield other


def runtime():
    return process.process_device().runtime


def test_a_captured_collective_is_replayed_without_the_hosts(dev):
    if dev.size == 1:
        pytest.skip("one rank has nobody to meet")
    x, y = symmetric(dev, np.full(900, 1.0)), symmetric(dev, np.full(100, dev.rank + 1.0))
    out = symmetric(dev, np.zeros((dev.size, 100)))
    dev.all_reduce(x)
    dev.all_gather(y, out)
    runtime().finish()
    dev.barrier()
    with runtime().capture() as replay:
        dev.all_reduce(x)
        dev.all_gather(y, out)
    assert (x.get() == dev.size).all()
    if dev.rank == dev.size - 1:
        time.sleep(0.02)
    for k in range(3):
        y[...] = dev.rank + k
        replay()
        assert (x.get() == dev.size ** (k + 2)).all()
        assert (out.get() == np.arange(dev.size)[:, None] + k).all()
    dev.all_reduce(x)
    assert (x.get() == dev.size**5).all()


def test_a_graph_holds_the_arrays_of_the_captured_call(dev):
    """Not those of the last call before it, also where only other ranks' are others."""
    if dev.size == 1:
        pytest.skip("one rank has nobody to meet")
    mine = [symmetric(dev, np.full(dev.size * 900, 1.0 + k)) for k in range(2)]
    out = symmetric(dev, np.zeros(900))
    for k in (1, 0, 1):
        dev.reduce_scatter(mine[k if dev.rank else 0], out=out)
    with runtime().capture() as replay:
        dev.reduce_scatter(mine[0], out=out)
    replay()
    assert (out.get() == dev.size).all()


def test_a_call_is_captured_on_all_ranks_or_on_none(comm):
    if comm.size == 1:
        pytest.skip("needs two ranks")
    with doubles(comm, comm.size, segment_bytes=4096) as dev:
        x = symmetric(dev, np.ones(900))
        dev.all_reduce(x)
        said = f"rank {dev.rank}: rank 0 captures all_reduce into a CUDA graph, but rank 1 does not"
        capture = runtime().capture() if dev.rank == 0 else contextlib.nullcontext()
        with capture, pytest.raises(pycomm.ArgumentError, match=said):
            dev.all_reduce(x)


CANNOT = {
    "not made before": lambda dev: dev.all_reduce(symmetric(dev, np.ones(77)), "max"),
    "ordinary": lambda dev: dev.all_gather(ordinary(dev, np.ones(50))),
    "asynchronous": lambda dev: dev.all_reduce(symmetric(dev, np.ones(7)), async_op=True),
}


@pytest.mark.parametrize("call", CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_captured_is_refused_and_nothing_is_sent(dev, call):
    if dev.size == 1:
        pytest.skip("one rank has nobody to meet")
    dev.all_gather(ordinary(dev, np.ones(50)))
    dev.all_reduce(symmetric(dev, np.ones(7)))
    said = f"rank {dev.rank}: all_.* cannot be captured into a CUDA graph"
    with runtime().capture(), pytest.raises(pycomm.ArgumentError, match=said):
        call(dev)
    x = symmetric(dev, np.ones(7))
    assert (dev.all_reduce(x).get() == dev.size).all()


def test_ranks_that_share_a_gpu_cannot_capture(comm):
    if comm.size == 1:
        pytest.skip("needs two ranks")
    with doubles(comm) as dev:
        x = symmetric(dev, np.ones(7))
        dev.all_reduce(x)
        with runtime().capture(), pytest.raises(pycomm.ArgumentError, match="needs a GPU of its"):
            dev.all_reduce(x)
