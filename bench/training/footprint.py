"""The memory that a variant takes at most, beyond what was there before it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Protocol

import torch

from pycomm.devices.process import process_device

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"


class Footprint(Protocol):
    """Measures the body of a `with`.

    Attributes:
        nbytes: the most that was in use, less what was before; None if it cannot be known.
    """

    nbytes: int | None

    def __enter__(self) -> Footprint:
        """Note what is there."""

    def __exit__(self, *error: object) -> None:
        """Note the peak."""


class OnHost:
    """Resident memory of the process: what it shares with others counts on every rank."""

    nbytes: int | None = None

    def __enter__(self) -> OnHost:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._before = _kilobytes("VmRSS")
        self._known = _forget_peak()
        return self

    def __exit__(self, *error: object) -> None:
        if self._known:
            self.nbytes = max(0, _kilobytes("VmHWM") - self._before) * 1024


class OnGpu:
    """What torch takes of the GPU, and symmetric memory."""

    nbytes: int | None = None

    def __enter__(self) -> OnGpu:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        self._slabs = process_device().slabs.nbytes
        return self

    def __exit__(self, *error: object) -> None:
        torch.cuda.synchronize()
        slabs = process_device().slabs.nbytes - self._slabs
        self.nbytes = torch.cuda.max_memory_allocated() - self._before + slabs


def footprint(device: str) -> Footprint:
    """Return what measures memory on a device."""
    return OnGpu() if device == "cuda" else OnHost()


def _kilobytes(name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def _forget_peak() -> bool:
    try:
        _FORGET.write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True
