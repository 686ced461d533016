"""Arrays of the host that are larger than its memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_NO_RESERVE = 0x4000
_MAP_FIXED = 0x10
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FOLD = 64 << 20

_process = ctypes.CDLL(None)
_mmap, _size = _process.mmap, ctypes.c_size_t


def sparse(nbytes: int, residue: int = 0) -> np.ndarray:
    """Return zeros that take memory only where they are written, `residue` after a page begins."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, nbytes + 16, flags=flags)
    return np.frombuffer(memory, np.uint8)[residue : residue + nbytes]


@contextmanager
def folded(nbytes: int, bytes_of_tail: int) -> Iterator[np.ndarray]:
    """Give zeros whose pages are all the same few, but those that hold the tail."""
    whole = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    tail = whole - -(-bytes_of_tail // mmap.PAGESIZE) * mmap.PAGESIZE
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    _mmap.restype = ctypes.c_void_p
    base = _mmap(None, _size(whole), _READ_WRITE, anonymous, -1, _size(0))
    file = os.memfd_create("folded")
    os.truncate(file, _FOLD)
    try:
        for start in range(0, tail, _FOLD):
            length, at = min(_FOLD, tail - start), ctypes.c_void_p(base + start)
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _mmap(at, _size(length), _READ_WRITE, flags, file, _size(0))
        yield np.frombuffer((ctypes.c_uint8 * nbytes).from_address(base), np.uint8)
    finally:
        os.close(file)
        _process.munmap(ctypes.c_void_p(base), _size(whole))
