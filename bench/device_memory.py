"""The buffers of a benchmark on a GPU: as those of memory.py, seen by the host through copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.gpu import Gpu, Part
from bench.memory import GUARD_BYTES, Buffers
from bench.operations import Case
from bench.patterns import POISON


class DeviceMemory:
    """One input and one output a kind of memory, "ordinary" and "symmetric", for all sizes.

    Args:
        gpu: this rank's.
        capacity_bytes: the largest size that will be asked for.
    """

    def __init__(self, gpu: Gpu, capacity_bytes: int):
        self._gpu = gpu
        self._bytes = capacity_bytes + GUARD_BYTES
        self._pools: dict[tuple[str, str], Part] = {}

    def buffers(self, case: Case, kind: str) -> DeviceBuffers:
        """Return the input and output for a case."""
        sizes = {"x": case.elements(case.op.input), "out": case.elements(case.op.output)}
        if case.place == "out":
            x, out = (self._part(kind, name, case, count) for name, count in sizes.items())
            return DeviceBuffers(self._gpu, case, x, out)
        whole = self._part(kind, "x", case, max(sizes.values()))
        return DeviceBuffers(self._gpu, case, whole, whole)

    def _part(self, kind: str, name: str, case: Case, count: int) -> Part:
        if (kind, name) not in self._pools:
            self._pools[kind, name] = self._gpu.memory(kind, self._bytes)
        return self._pools[kind, name].cut(0, count * case.numpy.itemsize + GUARD_BYTES)


class DeviceBuffers(Buffers):
    """The input `x` and the output `out` of a case on a GPU.

    Attributes:
        gpu: where they are.
        x_part: the memory of `x`.
        out_part: the memory of `out`.
    """

    def __init__(self, gpu: Gpu, case: Case, x: Part, out: Part):
        self.gpu = gpu
        self.wait = gpu.synchronize
        self._case = case
        self._parts = [x] if x is out else [x, out]
        self.x_part = self._cut(x, case.elements(case.op.input), x is out)
        self.out_part = self._cut(out, case.elements(case.op.output), x is out)
        self.x: Any = gpu.array(self.x_part, case.dtype)
        self.out: Any = gpu.array(self.out_part, case.dtype)

    def give(self, values: np.ndarray) -> None:
        """Make these the input."""
        self.gpu.put(self.x_part.address, np.ascontiguousarray(values))

    def input(self) -> np.ndarray:
        """Return a copy of the input as it is now."""
        return self.gpu.get(self.x_part).view(self._case.numpy)

    def output(self, result: Any) -> np.ndarray:
        """Return a copy of a result, flat: of `out`, whatever was returned."""
        return self.gpu.get(self.out_part).view(self._case.numpy)

    def poison(self) -> None:
        """Make every byte, guards included, one that must not be left in a result."""
        for part in self._parts:
            self.gpu.put(part.address, np.full(part.nbytes, POISON, np.uint8))

    def clear(self, value: int) -> None:
        """Make every element the same value, so that timing meets no infinities or denormals."""
        for part in self._parts:
            count = (part.nbytes - GUARD_BYTES) // self._case.numpy.itemsize
            self.gpu.put(part.address, np.full(count, value, self._case.numpy))

    def wrong_guards(self) -> int:
        """Count the bytes beyond the buffers that were written."""
        guards = [part.cut(part.nbytes - GUARD_BYTES, GUARD_BYTES) for part in self._parts]
        return sum(int((self.gpu.get(guard) != POISON).sum()) for guard in guards)

    def _cut(self, part: Part, count: int, shared: bool) -> Part:
        """Return where `count` elements are; this rank's chunk, if they are a part of a whole."""
        nbytes = count * self._case.numpy.itemsize
        chunk = shared and nbytes < part.nbytes - GUARD_BYTES
        return part.cut(self._case.chunk().start * self._case.numpy.itemsize * chunk, nbytes)
