"""The wire of an MPI job, through mpi4py: bytes only, nonblocking calls only, under one lock."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from typing import Any

import mpi4py
import numpy as np

from pycomm import _native
from pycomm.config import Config
from pycomm.transport.base import Request

_lock = threading.RLock()
"""Every call into MPI is made under it, so MPI_THREAD_SERIALIZED is enough."""

_THREADS = ("single", "funneled", "serialized", "multiple")

_DEFAULTS = {"OMPI_MCA_btl_tcp_flags": "send,inplace"}
"""Open MPI's settings where the user has made none.

Without put, TCP carries the data of two hosts in both directions at once: with it the receiver asks
for each message, its asking waits behind the data that it sends itself, and the hosts take turns.
"""


def import_mpi() -> tuple[Any, int]:
    """Import mpi4py.MPI, initialising MPI if nobody has.

    Returns:
        The module, and the address of MPI_Finalize if it is for pycomm to call at exit, else 0.
    """
    ours = "mpi4py.MPI" not in sys.modules
    if ours:
        mpi4py.rc.finalize = False
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
    from mpi4py import MPI

    if not ours:
        return MPI, 0
    return MPI, _address(MPI, "MPI_Finalize")


def library_name(version: str) -> str:
    """Return name and version out of what MPI_Get_library_version says."""
    match = re.match(r"([A-Za-z()® ]+?)(?: Library)?(?:\s*[Vv]ersion)?:?\s*v?(\d[\w.]*)", version)
    return f"{match[1].strip()} {match[2]}" if match else version.split("\n")[0].strip()


def _address(mpi: Any, name: str) -> int:
    """Return the address of a function of MPI."""
    return ctypes.cast(getattr(ctypes.CDLL(mpi.__file__), name), ctypes.c_void_p).value or 0


class _MpiRequest:
    """The pieces of one message; keeps its memory alive until they are complete."""

    __slots__ = ("_pieces", "_memory", "_mpi")

    def __init__(self, mpi: Any, pieces: list[Any], memory: np.ndarray):
        self._mpi = mpi
        self._pieces: list[Any] | None = pieces
        self._memory: np.ndarray | None = memory

    def test(self) -> bool:
        if self._pieces is not None:
            with _lock:
                complete = self._mpi.Request.Testall(self._pieces)
            if complete:
                self._pieces = self._memory = None
        return self._pieces is None


class MpiWire:
    """The processes of an MPI communicator, of which this wire owns a duplicate.

    Args:
        mpi: the module mpi4py.MPI.
        comm: an MPI intracommunicator; duplicating it is collective.
        config: max_message_bytes is used; MPI's counts end at 2³¹−1.
    """

    def __init__(self, mpi: Any, comm: Any, config: Config):
        self._mpi = mpi
        self._comm = comm.Dup()
        self._piece = config.max_message_bytes
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.library = library_name(mpi.Get_library_version())
        self.threads = _THREADS[mpi.Query_thread()]
        self.tags: int = mpi.COMM_WORLD.Get_attr(mpi.TAG_UB) + 1

    def isend(self, data: np.ndarray, peer: int, tag: int) -> Request:
        """Start to send a flat uint8 array."""
        with _lock:
            pieces = [self._comm.Isend([p, self._mpi.BYTE], peer, tag) for p in self._cut(data)]
        return _MpiRequest(self._mpi, pieces, data)

    def irecv(self, out: np.ndarray, peer: int, tag: int) -> Request:
        """Start to receive exactly `out.nbytes` bytes."""
        with _lock:
            pieces = [self._comm.Irecv([p, self._mpi.BYTE], peer, tag) for p in self._cut(out)]
        return _MpiRequest(self._mpi, pieces, out)

    def _cut(self, data: np.ndarray) -> list[np.ndarray]:
        return [data[i : i + self._piece] for i in range(0, max(1, data.nbytes), self._piece)]

    def take(self, tag: int) -> tuple[np.ndarray, int] | None:
        """Return the next message with `tag`, of any size, and its sender; None if none came."""
        with _lock:
            status = self._mpi.Status()
            message = self._comm.Improbe(self._mpi.ANY_SOURCE, tag, status)
            if message is None:
                return None
            data = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
            message.Recv([data, self._mpi.BYTE])
            return data, status.Get_source()

    def abort(self, code: int) -> None:
        """End all processes of the job with this exit code."""
        self._mpi.COMM_WORLD.Abort(code)

    def abort_on_failure(self) -> None:
        """End the job when this process exits with a failure, and pycomm is to finalize MPI.

        On one host the launcher does that. Between hosts MPICH's ends the ranks of that host only.
        """
        handle = self._mpi._handleof(self._mpi.COMM_WORLD)
        _native.abort_on_failure(_address(self._mpi, "MPI_Abort"), handle)

    def close(self) -> None:
        """Free the duplicate; collective."""
        with _lock:
            self._comm.Free()
