"""Host memory for kernels, with a given alignment and guards around it."""

from __future__ import annotations

import numpy as np

from pycomm.kernels.device import DeviceView
from tests.cuda.host import HostLauncher

_GUARD = 64
_UNTOUCHED = 0xA5


def view(array: np.ndarray) -> DeviceView:
    """Return an array's memory as kernels are given it."""
    return DeviceView(array.ctypes.data, array.nbytes, 0, array)


class Host:
    """A launcher and arrays for it."""

    def __init__(self, multiprocessors: int = 2):
        self.launcher = HostLauncher(multiprocessors)
        self._rooms: list[tuple[np.ndarray, int, int]] = []

    def empty(self, nbytes: int, residue: int = 0) -> np.ndarray:
        """Return a flat uint8 array whose address is `residue` above a multiple of 16."""
        room = np.full(nbytes + 2 * _GUARD + 16, _UNTOUCHED, np.uint8)
        start = _GUARD + (residue - room.ctypes.data - _GUARD) % 16
        self._rooms.append((room, start, start + nbytes))
        return room[start : start + nbytes]

    def put(self, data: np.ndarray, residue: int = 0) -> np.ndarray:
        """Return a copy of the bytes of `data`."""
        array = self.empty(data.nbytes, residue)
        array[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        return array

    def get(self, array: np.ndarray) -> np.ndarray:
        """Return an array; memory beside all arrays must be untouched."""
        for room, start, end in self._rooms:
            assert (room[:start] == _UNTOUCHED).all(), "memory before an array was written"
            assert (room[end:] == _UNTOUCHED).all(), "memory after an array was written"
        return array
