"""The wire of an MPI job, through mpi4py: bytes only, nonblocking calls only, under one lock."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import mpi4py
import numpy as np

from pycomm import _native
from pycomm.config import Config
from pycomm.errors import UnsupportedError
from pycomm.transport.wire import WireRequest

_lock = threading.RLock()
"""Every call into MPI is made under it, so MPI_THREAD_SERIALIZED is enough."""

_THREADS = ("single", "funneled", "serialized", "multiple")

_FT_ENABLE = "OMPI_MCA_mpi_ft_enable"
"""What mpirun --with-ft ulfm sets: its launcher does not end the others when a process dies."""

_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA

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
    return ctypes.cast(getattr(_library(mpi), name), ctypes.c_void_p).value or 0


def _library(mpi: Any) -> ctypes.CDLL:
    return ctypes.CDLL(mpi.__file__)


def takes_gpus(mpi: Any) -> bool:
    """Say whether the library says that it takes memory of CUDA's GPUs; initialised it must be."""
    library, flag = _library(mpi), ctypes.c_int(0)
    if hasattr(library, "MPIX_Query_cuda_support"):
        return bool(library.MPIX_Query_cuda_support() == 1)
    if hasattr(library, "MPIX_GPU_query_support"):  # MPICH
        library.MPIX_GPU_query_support(_CUDA, ctypes.byref(flag))
    return flag.value != 0


class _MpiRequest:
    """The pieces of one message; keeps its memory alive until they are complete.

    If the peer died it never completes: who waits for it asks the wire who failed.
    """

    __slots__ = ("_failed", "_memory", "_pieces", "_wire", "peer")

    def __init__(self, wire: MpiWire, pieces: list[Any] | None, memory: np.ndarray, peer: int):
        self._wire = wire
        self._pieces = pieces
        self._failed = pieces is None
        self._memory: np.ndarray | None = memory
        self.peer = peer

    def test(self) -> bool:
        with _lock:  # another thread may ask, too
            if self._pieces is not None and not self._failed:
                try:
                    if self._wire.mpi.Request.Testall(self._pieces):
                        self._pieces = self._memory = None
                except self._wire.mpi.Exception:
                    self._wire.check_death()
                    self._failed = True
            return self._pieces is None and not self._failed


def _tells_deaths(comm: Any) -> bool:
    """Say whether MPI reports dead processes."""
    try:
        comm.Get_failed().Free()
    except (NotImplementedError, RuntimeError):
        return False
    return True


class MpiWire:
    """The processes of an MPI communicator that is this wire's own.

    Args:
        mpi: the module mpi4py.MPI.
        comm: an MPI intracommunicator, for nothing else.
        config: max_message_bytes is used; MPI's counts end at 2³¹−1.
        first: that of all processes, of which some have died since; None: `comm`.
    """

    def __init__(self, mpi: Any, comm: Any, config: Config, first: Any = None):
        self.mpi = mpi
        self._comm, self._first = comm, first or comm
        self._comm.Set_errhandler(mpi.ERRORS_RETURN)
        everyone = mpi._handleof(mpi.COMM_WORLD)
        _native.abort_by(_address(mpi, "MPI_Abort"), everyone)
        self._group = self._comm.Get_group()
        self._tells_deaths = _tells_deaths(self._comm)
        self.outlives = self._tells_deaths and os.environ.get(_FT_ENABLE) in ("1", "true", "yes")
        self._last_words_s = 0.25
        """What was written last is still on its way through the launcher; and ranks on other hosts,
        which may know more, raise at about the time that this one does."""
        self._config = config
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.library = library_name(mpi.Get_library_version())
        self.takes_gpus = takes_gpus(mpi)
        self.threads = _THREADS[mpi.Query_thread()]
        self.tags: int = mpi.COMM_WORLD.Get_attr(mpi.TAG_UB) + 1

    def isend(self, data: np.ndarray, peer: int, tag: int) -> WireRequest:
        """Start to send a flat uint8 array."""
        return self._start(self._comm.Isend, data, peer, tag)

    def irecv(self, out: np.ndarray, peer: int, tag: int) -> WireRequest:
        """Start to receive exactly `out.nbytes` bytes."""
        return self._start(self._comm.Irecv, out, peer, tag)

    def _start(
        self, post: Callable[..., Any], data: np.ndarray, peer: int, tag: int
    ) -> WireRequest:
        pieces = None
        try:
            with _lock:
                pieces = [post([p, self.mpi.BYTE], peer, tag) for p in self._cut(data)]
        except self.mpi.Exception:
            self.check_death()
        return _MpiRequest(self, pieces, data, peer)

    def _cut(self, data: np.ndarray) -> list[np.ndarray]:
        piece = self._config.max_message_bytes
        return [data[i : i + piece] for i in range(0, max(1, data.nbytes), piece)]

    def take(self, tag: int) -> tuple[np.ndarray, int] | None:
        """Return the next message with `tag`, of any size, and its sender; None if none came."""
        with _lock:
            status = self.mpi.Status()
            try:
                message = self._comm.Improbe(self.mpi.ANY_SOURCE, tag, status)
            except self.mpi.Exception:
                self.check_death()
                self._comm.Ack_failed(self.size)  # or it would find no message of others, either
                return None
            if message is None:
                return None
            data = np.empty(status.Get_count(self.mpi.BYTE), np.uint8)
            message.Recv([data, self.mpi.BYTE])
            return data, status.Get_source()

    def check_death(self) -> None:
        """Raise the MPI error that is being handled again, unless processes are known to be dead.

        Then whoever waits learns it from `failed`; MPI's own words differ from call to call. Or a
        rank that knows more shrinks already, and `failed` will tell.
        """
        if not self.failed() and not (self.outlives and self._comm.Is_revoked()):
            raise

    def failed(self) -> list[int]:
        """Return the processes that are known to be dead; none where that ends the job anyway."""
        if not self._tells_deaths:
            return []
        with _lock:
            group = self._comm.Get_failed()
            ranks: list[int] = group.Translate_ranks(None, self._group)
            group.Free()
        return ranks

    def shrink(self) -> MpiWire:
        """Return the wire of the processes that are alive; collective over them.

        Messages of this wire fail from then on, also those that others wait for. All that go on
        meet, also when some were on their way here from one wire, and some from the next.

        Raises:
            UnsupportedError: this job does not outlive the death of a process.
        """
        if not self.outlives:
            raise UnsupportedError(
                f"{self.library} ends the job when a process dies: start it with Open MPI 5 and "
                "mpirun --with-ft ulfm"
            )
        with _lock:
            self._comm.Revoke()
            return MpiWire(self.mpi, self._first.Shrink(), self._config, self._first)

    def abort(self, code: int) -> None:
        """End all processes of the job with this exit code."""
        time.sleep(self._last_words_s)
        self.mpi.COMM_WORLD.Abort(code)

    def abort_on_failure(self) -> None:
        """End the job when this process exits with a failure, and pycomm is to finalize MPI.

        On one host the launcher does that. Between hosts MPICH's ends the ranks of that host only.
        """
        _native.abort_on_failure()
        self._last_words_s = 0.5

    def close(self) -> None:
        """Free the MPI communicator; collective."""
        with _lock:
            self._comm.Free()
