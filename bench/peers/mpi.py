"""MPI through mpi4py, on buffers: what the ranks were launched with, whichever that is."""

from __future__ import annotations

from functools import partial
from typing import Any

import mpi4py
import numpy as np

from bench.memory import Buffers
from bench.operations import Case
from bench.peers.base import Call, Peer, Start, peer
from bench.ranks import Ranks
from pycomm import UnsupportedError

_TYPES = {
    "bool": "C_BOOL",
    "int8": "INT8_T",
    "int16": "INT16_T",
    "int32": "INT32_T",
    "int64": "INT64_T",
    "uint8": "UINT8_T",
    "uint16": "UINT16_T",
    "uint32": "UINT32_T",
    "uint64": "UINT64_T",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "complex64": "C_FLOAT_COMPLEX",
    "complex128": "C_DOUBLE_COMPLEX",
}
_OPS = {
    "sum": "SUM",
    "prod": "PROD",
    "min": "MIN",
    "max": "MAX",
    "band": "BAND",
    "bor": "BOR",
    "bxor": "BXOR",
}


@peer("mpi4py")
class Mpi(Peer):
    """Collectives in place where MPI can; arguments with count and type, the cheapest to parse."""

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        self._mpi = ranks.mpi
        self._comm = ranks.mpi.COMM_WORLD.Dup()

    def version(self) -> str:
        """Return mpi4py's version; MPI's is elsewhere in the header."""
        return f"mpi4py {mpi4py.__version__}"

    def collective(self, case: Case, buffers: Buffers) -> Call:
        """Return MPI's collective with its arguments."""
        if case.op.name == "barrier":
            return self._comm.Barrier
        arguments = getattr(self, f"_{case.op.name}")(case, buffers)
        return partial(*arguments)

    def starting(self, case: Case, buffers: Buffers) -> Start:
        """Return Iallreduce."""
        arguments = self._mpi.IN_PLACE, self._buffer(case, buffers.x), self._op(case)
        return lambda: self._comm.Iallreduce(*arguments).Wait

    def message(self, case: Case, buffers: Buffers) -> tuple[Call, Call]:
        """Return Send and Recv."""
        x, out = self._buffer(case, buffers.x), self._buffer(case, buffers.out)
        return partial(self._comm.Send, x, case.partner), partial(
            self._comm.Recv, out, case.partner
        )

    def close(self) -> None:
        """Free the communicator."""
        self._comm.Free()

    def _buffer(self, case: Case, array: np.ndarray) -> list[Any]:
        if case.dtype in _TYPES:
            return [array, array.size, getattr(self._mpi, _TYPES[case.dtype])]
        if case.op.reduces:
            raise UnsupportedError(f"MPI does not reduce {case.dtype}")
        return [array.view(np.uint8), array.nbytes, self._mpi.BYTE]

    def _op(self, case: Case) -> Any:
        if case.redop not in _OPS or case.dtype == "bool":
            raise UnsupportedError(f"MPI has no {case.redop} of {case.dtype}")
        return getattr(self._mpi, _OPS[case.redop])

    def _all_reduce(self, case: Case, buffers: Buffers) -> list[Any]:
        buffer = self._buffer(case, buffers.x)
        return [self._comm.Allreduce, self._mpi.IN_PLACE, buffer, self._op(case)]

    def _reduce(self, case: Case, buffers: Buffers) -> list[Any]:
        buffer = self._buffer(case, buffers.x)
        ends = [self._mpi.IN_PLACE, buffer] if case.rank == case.root else [buffer, None]
        return [self._comm.Reduce, *ends, self._op(case), case.root]

    def _reduce_scatter(self, case: Case, buffers: Buffers) -> list[Any]:
        if case.place == "in":
            raise UnsupportedError("MPI leaves an in-place reduce_scatter at the buffer's start")
        ends = self._each(case, buffers.x), self._buffer(case, buffers.out)
        return [self._comm.Reduce_scatter_block, *ends, self._op(case)]

    def _all_gather(self, case: Case, buffers: Buffers) -> list[Any]:
        in_place = case.place == "in"
        x = self._mpi.IN_PLACE if in_place else self._buffer(case, buffers.x)
        return [self._comm.Allgather, x, self._each(case, buffers.out)]

    def _all_to_all(self, case: Case, buffers: Buffers) -> list[Any]:
        ends = self._each(case, buffers.x), self._each(case, buffers.out)
        return [self._comm.Alltoall, *ends]

    def _broadcast(self, case: Case, buffers: Buffers) -> list[Any]:
        return [self._comm.Bcast, self._buffer(case, buffers.x), case.root]

    def _gather(self, case: Case, buffers: Buffers) -> list[Any]:
        out = self._each(case, buffers.out) if case.rank == case.root else None
        return [self._comm.Gather, self._buffer(case, buffers.x), out, case.root]

    def _scatter(self, case: Case, buffers: Buffers) -> list[Any]:
        x = self._each(case, buffers.x) if case.rank == case.root else None
        return [self._comm.Scatter, x, self._buffer(case, buffers.out), case.root]

    def _each(self, case: Case, array: np.ndarray) -> list[Any]:
        """Return a buffer of one chunk a rank: its count is that of a chunk."""
        memory, count, kind = self._buffer(case, array)
        return [memory, count // case.ranks, kind]
