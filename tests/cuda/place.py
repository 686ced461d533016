"""Where the tests of kernels run: memory with a given alignment, and guards around it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np

from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.device import device_view
from pycomm.kernels.launcher import Launcher

_GUARD = 64
_LINE = 128
UNTOUCHED = 0xA5
"""What memory holds at first."""

_process = ctypes.CDLL(None)


class Place:
    """Arrays of one module, NumPy or CuPy, and the kernels for them."""

    def __init__(self, xp: Any, launcher: Launcher):
        self.xp = xp
        self.launcher = launcher
        self.kernels = CudaKernels(launcher)
        self._rooms: list[_Room] = []

    def empty(self, nbytes: int, residue: int = 0) -> Any:
        """Return a flat uint8 array whose address is `residue` above a multiple of 128."""
        room = _Room(self.xp, nbytes, residue)
        self._rooms.append(room)
        return room.array

    def put(self, data: np.ndarray, residue: int = 0) -> Any:
        """Return a copy of the bytes of `data`."""
        array = self.empty(data.nbytes, residue)
        array[:] = self.xp.asarray(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        return array

    def get(self, array: Any) -> np.ndarray:
        """Return the bytes of an array; all memory beside the arrays must be untouched."""
        return self.get_all([array])[0]

    def get_all(self, arrays: Iterable[Any]) -> list[np.ndarray]:
        """Return the bytes of each array; all memory beside the arrays must be untouched."""
        for room in self._rooms:
            room.check()
        return [array if self.xp is np else self.xp.asnumpy(array) for array in arrays]

    def forget(self) -> None:
        """Let go of all arrays."""
        self._rooms.clear()


class _Room:
    """An array and the guards around it, of which AddressSanitizer forbids even reading."""

    def __init__(self, xp: Any, nbytes: int, residue: int):
        room = xp.full(nbytes + 2 * _GUARD + _LINE, UNTOUCHED, xp.uint8)
        start = _GUARD + (residue - device_view(room).address - _GUARD) % _LINE
        self._before, self._after = room[:start], room[start + nbytes :]
        self.array = room[start : start + nbytes]
        self._forbid = getattr(_process, "__asan_poison_memory_region", None)
        self._permit = getattr(_process, "__asan_unpoison_memory_region", None)
        self._guards(self._forbid)

    def __del__(self) -> None:
        self._guards(self._permit)

    def check(self) -> None:
        """Fail where a guard was written."""
        self._guards(self._permit)
        assert bool((self._before == UNTOUCHED).all()), "memory before an array was written"
        assert bool((self._after == UNTOUCHED).all()), "memory after an array was written"
        self._guards(self._forbid)

    def _guards(self, change: Any) -> None:
        if change is not None:
            for guard in map(device_view, (self._before, self._after)):
                change(ctypes.c_void_p(guard.address), ctypes.c_size_t(guard.nbytes))
