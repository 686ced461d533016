"""The GPU that kernels are measured on: CuPy's arrays, torch's tensors over them, and events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.gpu import STAND_IN, gpu_name
from bench.peers import UnavailableError
from pycomm.arrays import numpy_dtype
from pycomm.errors import MissingError
from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.cuda_launcher import CupyLauncher, import_cupy
from pycomm.types import DTYPES


class Device:
    """One GPU, its default stream, and pycomm's kernels on it.

    Args:
        xp: CuPy, or NumPy as its stand-in on a machine without a GPU.
        launcher: of the same memory.
        torch: None where it is not installed.
    """

    def __init__(self, xp: Any, launcher: Any, torch: Any):
        self.xp, self.launcher, self.torch = xp, launcher, torch
        self.kernels = CudaKernels(launcher)
        self.on_gpu = xp is not np

    @classmethod
    def opened(cls) -> Device:
        """Return the current GPU.

        Raises:
            UnavailableError: there is none, or CuPy is not installed; in one sentence.
        """
        try:
            cupy = import_cupy()
        except MissingError as error:
            raise UnavailableError(str(error)) from None
        return cls(cupy, CupyLauncher(), _torch())

    def tensor(self, array: Any, dtype: str) -> Any:
        """Return a torch tensor on the memory of a flat uint8 array."""
        flat = self.torch.as_tensor(array, device="cuda" if self.on_gpu else "cpu")
        return flat.view(getattr(self.torch, dtype))

    def host(self, array: Any) -> np.ndarray:
        """Return a copy in host memory."""
        return np.array(array) if not self.on_gpu else self.xp.asnumpy(array)

    def elapsed_us(self, work: Callable[[], None]) -> float:
        """Return the time between an event before `work` is queued and one after it."""
        if not self.on_gpu:
            start = time.perf_counter_ns()
            work()
            return (time.perf_counter_ns() - start) / 1e3
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(start, end)) * 1e3

    def synchronize(self) -> None:
        """Wait for everything that was launched."""
        if self.on_gpu:
            self.xp.cuda.Device().synchronize()

    def release(self) -> None:
        """Give memory that is no longer used back to the device."""
        if self.on_gpu:
            self.xp.get_default_memory_pool().free_all_blocks()
            if self.torch is not None:
                self.torch.cuda.empty_cache()

    def name(self) -> str:
        """Return the GPU's name, memory and driver."""
        return gpu_name(self.xp) if self.on_gpu else STAND_IN


def numpy_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float values rounded to a dtype, as bytes."""
    return np.ascontiguousarray(values.astype(numpy_dtype(DTYPES[dtype]))).view(np.uint8)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None
