"""What a GPU allows: one process that runs the same kernel, or copies, with nobody else there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bench.device_memory import DeviceBuffers
from bench.gpu import Gpu, Part
from bench.memory import Buffers
from bench.operations import WINDOW, Case
from bench.peers.base import Call, Peer, in_sequence, peer, repeated
from bench.ranks import Ranks
from bench.verify import Batch
from pycomm import UnsupportedError
from pycomm.kernels.device import DeviceView
from pycomm.types import DTYPES, ReduceOp


@peer("n_in_n_out")
class Kernel(Peer):
    """Rank 0 alone reduces n buffers of the size into all n, in place; the others wait for it.

    That is what an all_reduce of n ranks that share a GPU has to read and write.
    """

    devices = ("cuda",)
    competes = False
    verified = False

    def __init__(self, ranks: Ranks):
        super().__init__(ranks)
        self._parts: list[Part] = []

    def collective(self, case: Case, buffers: Any) -> Call:
        """Return the kernel's launch on rank 0, and on others what does nothing."""
        if case.op.name != "all_reduce":
            raise UnsupportedError("n_in_n_out is defined for all_reduce")
        if case.rank > 0:
            return _nothing
        gpu, dtype, op = buffers.gpu, DTYPES[case.dtype], ReduceOp(case.redop)
        memory = self._memory(gpu, case)
        views = [DeviceView(p.address, p.nbytes, gpu.runtime.device, p.owner) for p in memory]

        def launch() -> None:
            with gpu.runtime.on(gpu.stream):
                gpu.runtime.kernels.reduce_into(views, views, dtype, op)

        return launch

    def _memory(self, gpu: Gpu, case: Case) -> list[Part]:
        """Return n buffers of numbers that stay finite, however often they are reduced."""
        nbytes = case.size_bytes
        if not self._parts or self._parts[0].nbytes < nbytes:
            for part in self._parts:
                gpu.runtime.free(part.owner)
            self._parts = [gpu.memory("ordinary", nbytes) for _ in range(case.ranks)]
        found = [part.cut(0, nbytes) for part in self._parts]
        values = np.full(case.count, 1 if case.redop == "prod" else 0, case.numpy)
        for part in found:
            gpu.put(part.address, values)
        return found


@peer("copy")
class Copy(Peer):
    """Even ranks copy the size from one buffer of their GPU to another, instead of sending it."""

    devices = ("cuda",)
    competes = False
    verified = False
    memory = "symmetric"

    def batch(self, case: Case, buffers: Buffers) -> Batch:
        """Return as many copies as the case has messages one after the other."""
        if not case.op.message or not isinstance(buffers, DeviceBuffers):
            raise UnsupportedError("copy is defined for messages")
        if case.rank % 2:
            return repeated(_nothing)
        gpu, source, target = buffers.gpu, buffers.x_part, buffers.out_part
        copy = partial(gpu.copy, target.address, source.address, source.nbytes)
        if case.op.name == "ping_pong":
            return repeated(in_sequence(*[copy, gpu.synchronize] * case.op.trips))
        return repeated(in_sequence(*[copy] * WINDOW, gpu.synchronize))


def _nothing() -> None:
    pass
