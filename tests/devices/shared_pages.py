"""Memory that other processes of the host map by a handle."""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

import numpy as np

_HANDLE = struct.Struct("<3q")
_kept: list[np.ndarray] = []
"""Mappings stay: streams may still be at work there."""


class Pages(NamedTuple):
    """A mapping: its bytes, its first address, and what opens it elsewhere."""

    bytes: np.ndarray
    address: int
    handle: bytes


def create_pages(nbytes: int) -> Pages:
    """Return new memory; its descriptor stays open as long as the process lives."""
    file = os.memfd_create("pycomm-device-double")
    os.truncate(file, nbytes)
    return _mapped(file, nbytes, _HANDLE.pack(os.getpid(), file, nbytes))


def open_pages(handle: bytes) -> Pages:
    """Map what another process, or this one, created."""
    pid, number, nbytes = _HANDLE.unpack(handle[: _HANDLE.size])
    file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
    try:
        return _mapped(file, nbytes, handle)
    finally:
        os.close(file)


def _mapped(file: int, nbytes: int, handle: bytes) -> Pages:
    memory = np.frombuffer(mmap.mmap(file, nbytes), np.uint8)
    _kept.append(memory)
    return Pages(memory, memory.ctypes.data, handle)
