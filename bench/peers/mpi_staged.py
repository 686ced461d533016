"""MPI on arrays of a GPU by way of the host: what one does whose MPI knows nothing of GPUs."""

from __future__ import annotations

import mmap
from functools import partial
from typing import Any

import numpy as np

from bench.device_memory import DeviceBuffers
from bench.memory import GUARD_BYTES, Buffers
from bench.operations import Case
from bench.peers.base import Call, in_sequence, peer
from bench.peers.mpi import Mpi
from bench.ranks import Ranks

_RESULT_AT_ROOT = ("reduce", "gather")


@peer("mpi4py-staged")
class Staged(Mpi):
    """Copies to page-locked memory of the host, mpi4py there, copies back; one after the other."""

    devices = ("cuda",)

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        self._rooms = [np.empty(0, np.uint8)] * 2

    def collective(self, case: Case, buffers: Any) -> Call:
        """Return mpi4py's function between two copies."""
        if case.op.name == "barrier":
            return super().collective(case, buffers)
        host = self._on_host(case, buffers)
        takes = case.op.name not in _RESULT_AT_ROOT or case.rank == case.root
        steps = [self._down(buffers, host)] if case.gives else []
        steps.append(super().collective(case, host))
        return in_sequence(*steps, *([self._up(buffers, host)] if takes else []))

    def message(self, case: Case, buffers: Any) -> tuple[Call, Call]:
        """Return Send behind a copy, and Recv before one."""
        if not isinstance(buffers, DeviceBuffers):
            return super().message(case, buffers)
        host = self._on_host(case, buffers)
        send, receive = super().message(case, host)
        down, up = self._down(buffers, host), self._up(buffers, host)
        return in_sequence(down, send), in_sequence(receive, up)

    def _down(self, buffers: DeviceBuffers, host: Buffers) -> Call:
        part, gpu = buffers.x_part, buffers.gpu
        address = host.x.ctypes.data
        return in_sequence(partial(gpu.copy, address, part.address, part.nbytes), gpu.synchronize)

    def _up(self, buffers: DeviceBuffers, host: Buffers) -> Call:
        part, gpu = buffers.out_part, buffers.gpu
        address = host.out.ctypes.data
        # The host's memory is used again by the next message at once.
        return in_sequence(partial(gpu.copy, part.address, address, part.nbytes), gpu.synchronize)

    def _on_host(self, case: Case, buffers: DeviceBuffers) -> Buffers:
        """Return buffers as those on the GPU, in the same page-locked memory for all cases."""
        extents = [case.op.input, case.op.output]
        if case.place == "in":
            extents = [max(extents, key=case.elements)]
        sizes = [case.elements(e) * case.numpy.itemsize + GUARD_BYTES for e in extents]
        rooms = [self._room(k, nbytes, buffers)[:nbytes] for k, nbytes in enumerate(sizes)]
        return Buffers(case, rooms[0], rooms[-1])

    def _room(self, k: int, nbytes: int, buffers: DeviceBuffers) -> np.ndarray:
        if self._rooms[k].size < nbytes:
            if self._rooms[k].size:
                buffers.gpu.runtime.unpin(self._rooms[k].ctypes.data)
            self._rooms[k] = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
            buffers.gpu.runtime.pin(self._rooms[k].ctypes.data, nbytes)
        return self._rooms[k]
