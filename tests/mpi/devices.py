"""GPUs' doubles for tests on several ranks: who shares which, and how slow streams are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import pycomm
from pycomm.devices import process
from pycomm.devices.process import Device
from tests.cuda.compilers import cxx
from tests.cuda.host import being_built
from tests.devices.host_array import HostArray
from tests.devices.host_runtime import HostRuntime

DELAY_S = 0.0002


@contextlib.contextmanager
def doubles(
    comm: pycomm.Communicator, gpus: int = 1, delay_s: float = DELAY_S, **settings: Any
) -> Iterator[pycomm.Communicator]:
    """Give a communicator whose ranks have doubles; rank r has GPU r mod `gpus`."""
    before = process._device
    if comm.rank == 0:
        being_built("reduce.cu", cxx()).result()  # streams would wait for it, and lose patience
    comm.barrier()
    runtime = HostRuntime(f"double {comm.rank % gpus}", delay_s, seed=comm.rank)
    process.use(Device.of(runtime, **settings))
    other = comm.split(0)
    try:
        yield other
    finally:
        other.close()
        process.use(before)
        runtime.end()


def symmetric(comm: pycomm.Communicator, x: np.ndarray) -> HostArray:
    """Return a symmetric array on the device with the contents of `x`."""
    array = comm.empty(x.shape, x.dtype, device="cuda")
    array[...] = x
    return array


def ordinary(comm: pycomm.Communicator, x: np.ndarray) -> HostArray:
    """Return an ordinary array on the device with the contents of `x`, by a copy enqueued."""
    array = HostArray(x.shape, x.dtype)
    array[...] = x
    return array
