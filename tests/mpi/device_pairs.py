"""What tests of device messages share: pairs in reach of each other or not, and what they send."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import pycomm
from tests.mpi.devices import DELAY_S, doubles, ordinary, runtime, symmetric

SEGMENT = 4096
SIZES = (0, 1, 500, SEGMENT, SEGMENT + 1, 50_000)
"""Copied at once, asked for in segments, offered where they are if symmetric."""
LARGE = 40_000


@contextlib.contextmanager
def in_reach(
    comm: pycomm.Communicator, delay_s: float = DELAY_S, **options: Any
) -> Iterator[pycomm.Communicator]:
    """Give a communicator whose ranks share a GPU, and look for failures of its streams."""
    with doubles(comm, delay_s=delay_s, segment_bytes=SEGMENT, **options) as other:
        yield other
        if runtime().waits:
            runtime().check()


def out_of_reach(
    comm: pycomm.Communicator, delay_s: float = DELAY_S
) -> contextlib.AbstractContextManager[pycomm.Communicator]:
    """Give a communicator whose ranks cannot reach each other's GPUs."""
    return in_reach(comm, delay_s, gpus=comm.size, peers=())


@contextlib.contextmanager
def by_mpi(
    comm: pycomm.Communicator, delay_s: float = DELAY_S, says_so: bool = True
) -> Iterator[pycomm.Communicator]:
    """Give one out of reach, where MPI's libraries take memory of GPUs, as they take the double's.

    Args:
        says_so: whether that of this rank does.
    """
    wire = comm.world.wire
    before, wire.takes_gpus = wire.takes_gpus, says_so
    try:
        with out_of_reach(comm, delay_s) as other:
            yield other
    finally:
        wire.takes_gpus = before


REACH = {"in reach": in_reach, "out of reach": out_of_reach, "by MPI": by_mpi}
PLACES = {"symmetric": symmetric, "ordinary": ordinary}


@pytest.fixture(params=REACH.values(), ids=REACH)
def dev(comm: pycomm.Communicator, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Communicators of each reach, in turn."""
    with request.param(comm) as other:
        yield other


@pytest.fixture
def near(comm: pycomm.Communicator) -> Iterator[pycomm.Communicator]:
    """One in reach."""
    with in_reach(comm) as other:
        yield other


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def make(request: pytest.FixtureRequest) -> Any:
    """What makes arrays of each kind, in turn."""
    return request.param


def ring(comm: pycomm.Communicator) -> tuple[int, int]:
    """Return the next and the previous rank."""
    return (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size


def pattern(count: int, rank: int, k: int = 0) -> np.ndarray:
    """Return bytes that depend on place, rank and message."""
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(2_654_435_761) >> 13
    return mixed.astype(np.uint8) ^ np.uint8((37 * rank + 11 * k) % 256)


def host(comm: pycomm.Communicator, x: np.ndarray) -> np.ndarray:
    """Return an array on the host, as `ordinary` and `symmetric` do on the device."""
    return x


def held() -> threading.Event:
    """Hold the current stream until the event returned is set."""
    gate = threading.Event()
    runtime().current.put(gate.wait)
    return gate
