"""The GPU of a rank in collectives.py and p2p.py: memory, contents, and the host that waits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pycomm
from bench.environment import results_folder
from pycomm.devices.base import Runtime
from pycomm.devices.process import known_device, process_device
from pycomm.errors import MissingError
from pycomm.kernels.cuda_launcher import import_cupy
from pycomm.types import DTYPES

STAND_IN = "no GPU: the host stands in"


@dataclass(frozen=True)
class Part:
    """A part of a GPU's memory, which `owner` keeps alive."""

    address: int
    nbytes: int
    owner: Any

    def cut(self, first: int, nbytes: int) -> Part:
        """Return a part of it, in bytes."""
        return Part(self.address + first, nbytes, self.owner)


class Gpu:
    """A rank's GPU, the one that pycomm uses; on the stream that is current when this is made.

    Unless the process uses one already, node-mate k takes GPU k modulo their number. Arrays are
    torch tensors where torch has the GPU, too; else CuPy's.

    Raises:
        MissingError: there is none, or CuPy is not installed; in one sentence.
    """

    def __init__(self, comm: pycomm.Communicator):
        self._comm = comm
        _take_gpu(comm.local.rank)
        self.runtime: Runtime = process_device().runtime
        self.has_tensors = _torch_has_gpus()
        self.stream = self.runtime.stream(self.has_tensors)
        self._done = self.runtime.event()

    def memory(self, kind: str, nbytes: int) -> Part:
        """Return new memory, "ordinary" or "symmetric"."""
        if kind == "symmetric":
            array = self._comm.empty(nbytes, "uint8", device="cuda")
            return Part(array.data.ptr, nbytes, array)
        allocation = self.runtime.allocate(nbytes)
        return Part(allocation.address, nbytes, allocation)

    def array(self, memory: Part, dtype: str) -> Any:
        """Return a flat array of all of `memory`."""
        shape = (memory.nbytes // DTYPES[dtype].itemsize,)
        return self.runtime.array(memory, shape, DTYPES[dtype], self.has_tensors)

    def put(self, target: int, values: np.ndarray) -> None:
        """Copy from the host to an address, and wait."""
        self.copy(target, values.ctypes.data, values.nbytes)
        self.synchronize()

    def get(self, memory: Part) -> np.ndarray:
        """Return a copy on the host, as bytes."""
        values = np.empty(memory.nbytes, np.uint8)
        self.copy(values.ctypes.data, memory.address, memory.nbytes)
        self.synchronize()
        return values

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy between addresses, of the GPU or of the host."""
        if nbytes:
            self.runtime.copy(target, source, nbytes, self.stream)

    def synchronize(self) -> None:
        """Let the host wait for all that is on the stream."""
        self.runtime.record(self._done, self.stream)
        self.runtime.synchronize(self._done)


def described(identities: Sequence[str]) -> str:
    """Return how many GPUs the ranks have, and which, from the identities of all ranks' GPUs."""
    return f"{len(set(identities))} for {len(identities)} rank(s): {_name()}"


def results() -> Path:
    """Return the folder for results of this day on a machine with this GPU.

    Raises:
        MissingError: there is none.
    """
    return results_folder(gpu_name(import_cupy()).split(",")[0])


def gpu_name(cupy: Any) -> str:
    """Return the current GPU's name, memory and driver."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    memory = properties["totalGlobalMem"] / 2**30
    version = runtime.driverGetVersion()
    driver = f"{version // 1000}.{version % 1000 // 10}"
    return f"{properties['name'].decode()}, {memory:.0f} GiB, driver for CUDA {driver}"


def _name() -> str:
    try:
        return gpu_name(import_cupy())
    except MissingError:
        return STAND_IN


def _take_gpu(place: int) -> None:
    if known_device() is None:
        runtime = import_cupy().cuda.runtime
        runtime.setDevice(place % runtime.getDeviceCount())


def _torch_has_gpus() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    try:
        print(results())
    except MissingError as error:
        sys.exit(f"Error: {error}")
