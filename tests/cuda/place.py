"""Where the tests of kernels run: memory with a given alignment, and guards around it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycomm.kernels.cuda import CudaKernels
from pycomm.kernels.device import device_view
from pycomm.kernels.launcher import Launcher

_GUARD = 64
_UNTOUCHED = 0xA5


class Place:
    """Arrays of one module, NumPy or CuPy, and the kernels for them."""

    def __init__(self, xp: Any, launcher: Launcher):
        self.xp = xp
        self.launcher = launcher
        self.kernels = CudaKernels(launcher)
        self._rooms: list[tuple[Any, int, int]] = []

    def empty(self, nbytes: int, residue: int = 0) -> Any:
        """Return a flat uint8 array whose address is `residue` above a multiple of 16."""
        room = self.xp.full(nbytes + 2 * _GUARD + 16, _UNTOUCHED, self.xp.uint8)
        start = _GUARD + (residue - device_view(room).address - _GUARD) % 16
        self._rooms.append((room, start, start + nbytes))
        return room[start : start + nbytes]

    def put(self, data: np.ndarray, residue: int = 0) -> Any:
        """Return a copy of the bytes of `data`."""
        array = self.empty(data.nbytes, residue)
        array[:] = self.xp.asarray(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        return array

    def get(self, array: Any) -> np.ndarray:
        """Return the bytes of an array; all memory beside the arrays must be untouched."""
        for room, start, end in self._rooms:
            assert bool((room[:start] == _UNTOUCHED).all()), "memory before an array was written"
            assert bool((room[end:] == _UNTOUCHED).all()), "memory after an array was written"
        return array if self.xp is np else self.xp.asnumpy(array)

    def forget(self) -> None:
        """Let go of all arrays."""
        self._rooms.clear()
