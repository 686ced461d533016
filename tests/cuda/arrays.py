"""Arrays with guards around them, for tests that no kernel touches what is not its own."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pycomm.kernels.device import HOST, DeviceView

GUARD = 64
FILL = 0xA5
READ_WRITE, MAP_FIXED = mmap.PROT_READ | mmap.PROT_WRITE, 0x10


class Guarded:
    """`nbytes` bytes that start `misaligned` (below 128) bytes after a multiple of 128.

    Guards lie around them; under AddressSanitizer even reading these is an error.
    """

    def __init__(self, nbytes: int, misaligned: int = 0, data: np.ndarray | None = None):
        self._room = np.full(nbytes + 256 + 2 * GUARD, FILL, np.uint8)
        start = GUARD + -(self._room.ctypes.data + GUARD) % 128 + misaligned
        self._before, self.bytes, self._after = np.split(self._room, [start, start + nbytes])
        if data is not None:
            self.bytes[:] = data.reshape(-1).view(np.uint8)
        self._guards("poison")

    def __del__(self) -> None:
        self._guards("unpoison")

    @property
    def view(self) -> DeviceView:
        return view(self.bytes)

    def assert_guards(self) -> None:
        self._guards("unpoison")
        assert (self._before == FILL).all(), "bytes before the array were written"
        assert (self._after == FILL).all(), "bytes after the array were written"
        self._guards("poison")

    def _guards(self, change: str) -> None:
        function = getattr(_process, f"__asan_{change}_memory_region", None)
        for guard in (self._before, self._after) if function else ():
            function(ctypes.c_void_p(guard.ctypes.data), ctypes.c_size_t(guard.nbytes))


_process = ctypes.CDLL(None)


def view(array: np.ndarray) -> DeviceView:
    """Return the view of an array on the host."""
    return DeviceView(array.ctypes.data, array.nbytes, HOST)


def sparse(nbytes: int) -> np.ndarray:
    """Return zeros that take memory only where they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8)


@contextmanager
def folded(nbytes: int, bytes_of_tail: int) -> Iterator[np.ndarray]:
    """Give zeros whose pages are all the same few, but those that hold the tail."""
    page, fold = mmap.PAGESIZE, 64 << 20
    whole = -(-nbytes // page) * page
    tail = whole - -(-bytes_of_tail // page) * page
    _mmap.restype = ctypes.c_void_p
    base = _mmap(
        None, _size(whole), READ_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, _size(0)
    )
    file = os.memfd_create("folded")
    os.truncate(file, fold)
    try:
        for start in range(0, tail, fold):
            length = min(fold, tail - start)
            at = ctypes.c_void_p(base + start)
            _mmap(at, _size(length), READ_WRITE, mmap.MAP_SHARED | MAP_FIXED, file, _size(0))
        yield np.frombuffer((ctypes.c_uint8 * nbytes).from_address(base), np.uint8)
    finally:
        os.close(file)
        _process.munmap(ctypes.c_void_p(base), _size(whole))


_mmap, _size = _process.mmap, ctypes.c_size_t
