"""Page-locked memory of the host, in rooms of one size that are used again."""

from __future__ import annotations

import mmap
import threading

import numpy as np

from pycomm.devices.base import Runtime


class Pinned:
    """Rooms for segments on their way between a GPU and the host.

    They stay, and locked: also those of transfers that failed, where a GPU may write to yet.
    """

    def __init__(self, runtime: Runtime, nbytes: int):
        self.nbytes = nbytes
        self._runtime = runtime
        self._all: list[np.ndarray] = []
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """Return a room: (nbytes,) of uint8, of undefined contents."""
        with self._lock:
            if self._free:
                return self._free.pop()
        room = np.frombuffer(mmap.mmap(-1, self.nbytes), np.uint8)
        self._runtime.pin(room.ctypes.data, self.nbytes)
        self._all.append(room)
        return room

    def give_back(self, room: np.ndarray) -> None:
        """Let others have the room; nobody uses it any more."""
        with self._lock:
            self._free.append(room)
