"""What tests of device messages share: pairs in reach of each other or not, and what they send."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from pycomm.devices.process import Device
from tests.devices.host_runtime import HostRuntime
from tests.mpi.devices import DELAY_S, doubles, ordinary, symmetric

PLACES = {"symmetric": symmetric, "ordinary": ordinary}
SEGMENT = 4096
SIZES = (0, 1, 500, SEGMENT, SEGMENT + 1, 50_000)
"""Copied at once, asked for in segments, offered where they are if symmetric."""
LARGE = 40_000


@contextlib.contextmanager
def out_of_reach(
    comm: pycomm.Communicator, delay_s: float = DELAY_S
) -> Iterator[pycomm.Communicator]:
    """Give a communicator whose ranks cannot reach each other's GPUs."""
    before = process._device
    runtime = HostRuntime(f"alone {comm.rank}", delay_s, seed=comm.rank, peers=())
    process.use(Device.of(runtime, segment_bytes=SEGMENT))
    other = comm.split(0)
    try:
        yield other
        runtime.check()
    finally:
        other.close()
        process.use(before)
        runtime.end()


@contextlib.contextmanager
def in_reach(comm: pycomm.Communicator, delay_s: float = DELAY_S) -> Iterator[pycomm.Communicator]:
    """Give a communicator whose ranks share a GPU."""
    with doubles(comm, delay_s=delay_s, segment_bytes=SEGMENT) as other:
        yield other
        if runtime().waits:
            runtime().check()


REACH = {"in reach": in_reach, "out of reach": out_of_reach}


def runtime() -> HostRuntime:
    """Return the process's double."""
    found = process.process_device().runtime
    assert isinstance(found, HostRuntime)
    return found


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


def several(comm: pycomm.Communicator) -> None:
    """Skip where there is no peer."""
    if comm.size == 1:
        pytest.skip("needs a peer")


def held() -> threading.Event:
    """Hold the current stream until the event returned is set."""
    gate = threading.Event()
    runtime().current.put(gate.wait)
    return gate
