"""The buffers of a benchmark: every implementation works on the same pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.operations import Case
from bench.patterns import POISON
from bench.ranks import Ranks

GUARD_BYTES = 256
"""After each buffer, to catch who writes beyond its end."""

_ALIGNMENT = 64


class Memory:
    """One input and one output a kind of memory, "ordinary" and "symmetric", for all sizes.

    Args:
        ranks: their Communicator makes the symmetric memory.
        capacity_bytes: the largest size that will be asked for.
    """

    def __init__(self, ranks: Ranks, capacity_bytes: int):
        self._ranks = ranks
        self._bytes = capacity_bytes + GUARD_BYTES
        self._pools: dict[tuple[str, str], np.ndarray] = {}

    def buffers(self, case: Case, kind: str) -> Buffers:
        """Return the input and output for a case."""
        sizes = {"x": case.elements(case.op.input), "out": case.elements(case.op.output)}
        if case.place == "out":
            return Buffers(case, **{n: self._raw(kind, n, case, s) for n, s in sizes.items()})
        whole = self._raw(kind, "x", case, max(sizes.values()))
        return Buffers(case, whole, whole)

    def _raw(self, kind: str, name: str, case: Case, count: int) -> np.ndarray:
        if (kind, name) not in self._pools:
            self._pools[kind, name] = self._allocate(kind)
        return self._pools[kind, name][: count * case.numpy.itemsize + GUARD_BYTES]

    def _allocate(self, kind: str) -> np.ndarray:
        if kind == "symmetric":
            return self._ranks.comm.empty(self._bytes, "uint8")
        memory = np.empty(self._bytes + _ALIGNMENT, np.uint8)
        skip = -memory.ctypes.data % _ALIGNMENT
        return memory[skip : skip + self._bytes]


class Buffers:
    """The input `x` and the output `out` of a case; parts of the same memory if it is in place.

    Attributes:
        wait: what the host calls to wait for them to be ready; None if they always are.
    """

    wait: Callable[[], None] | None = None

    def __init__(self, case: Case, x: np.ndarray, out: np.ndarray):
        self._case = case
        self._memories = [x] if x is out else [x, out]
        self.x = self._array(x, case.elements(case.op.input), x is out)
        self.out = self._array(out, case.elements(case.op.output), x is out)

    def _array(self, memory: np.ndarray, count: int, shared: bool) -> np.ndarray:
        array = memory[:-GUARD_BYTES].view(self._case.numpy)
        return array[self._case.chunk()] if shared and count < array.size else array[:count]

    def give(self, values: np.ndarray) -> None:
        """Make these the input."""
        self.x[:] = values

    def input(self) -> np.ndarray:
        """Return the input as it is now."""
        return self.x

    def output(self, result: Any) -> np.ndarray:
        """Return a result, flat: `out`, unless the operation returned another array."""
        return self.out if result is None else np.asarray(result).reshape(-1)

    def poison(self) -> None:
        """Make every byte, guards included, one that must not be left in a result."""
        for memory in self._memories:
            memory[:] = POISON

    def clear(self, value: int) -> None:
        """Make every element the same value, so that timing meets no infinities or denormals."""
        for memory in self._memories:
            memory[:-GUARD_BYTES].view(self._case.numpy)[:] = value

    def wrong_guards(self) -> int:
        """Count the bytes beyond the buffers that were written."""
        return sum(int((m[-GUARD_BYTES:] != POISON).sum()) for m in self._memories)
