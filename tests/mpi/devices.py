"""GPUs' doubles for tests on several ranks: who shares which, and how slow streams are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import pycomm
from pycomm.devices import process
from pycomm.devices.base import DeviceError
from pycomm.devices.process import Device
from tests.cuda.compilers import cxx
from tests.cuda.host import being_built
from tests.devices.host_array import HostArray
from tests.devices.host_runtime import HostRuntime

DELAY_S = 0.0002


@contextlib.contextmanager
def doubles(
    comm: pycomm.Communicator,
    gpus: int = 1,
    delay_s: float = DELAY_S,
    peers: Sequence[str] | None = None,
    **settings: Any,
) -> Iterator[pycomm.Communicator]:
    """Give a communicator whose ranks have doubles; rank r has GPU r mod `gpus`.

    Args:
        peers: the GPUs besides its own that this rank's has access to; None for all.
        settings: of the Device.
    """
    before, runtime_before = process._device, HostArray.runtime
    if comm.rank == 0:
        files = ["reduce.cu", *["collective.cu"] * (gpus >= comm.size > 1)]
        for built in [being_built(file, cxx()) for file in files]:
            built.result()  # streams would wait for it, and lose patience
    comm.barrier()
    runtime = HostRuntime(f"double {comm.rank % gpus}", delay_s, comm.rank, peers)
    process.use(Device.of(runtime, **settings))
    other = comm.split(0)
    try:
        yield other
    finally:
        other.close()
        runtime.end()
        process.use(before)
        HostArray.runtime = runtime_before


def apart(comm: pycomm.Communicator, **options: Any) -> contextlib.AbstractContextManager[Any]:
    """Give a communicator of doubles that have access to no other; segments are small."""
    return doubles(comm, **{"gpus": comm.size, "peers": (), "segment_bytes": 4096, **options})


def several(comm: pycomm.Communicator) -> None:
    """Skip where there is no other rank, and no other GPU."""
    if comm.size == 1:
        pytest.skip("needs two ranks")


def runtime() -> HostRuntime:
    """Return the double that the process uses now."""
    return process.process_device().runtime


def let_fail(patch: Any, what: str, when: str, mine: bool, act: Callable[[], Any]) -> None:
    """Let the first, fourth or last call of a method of this rank's double fail, if `mine`.

    Args:
        patch: pytest's monkeypatch.
        act: makes these calls; it is done once here, to count them.
    """
    done, real = [0], getattr(runtime(), what)

    def call(failing: int, *arguments: Any) -> Any:
        done[0] += 1
        if done[0] == failing:
            raise DeviceError(f"no {what} today")
        return real(*arguments)

    patch.setattr(runtime(), what, partial(call, 0))
    act()
    failing = {"first": 1, "fourth": min(4, done[0]), "last": done[0]}[when]
    done[0] = 0
    patch.setattr(runtime(), what, partial(call, failing if mine else 0))


def transport_of(comm: pycomm.Communicator) -> Any:
    """Return what a communicator's device arrays go by."""
    return comm._collectives.on_device._transport


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
