"""Loops that compute for a given time, with the interpreter or without."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat

import numpy as np

Compute = Callable[[], None]

_SIDE = 64
_UNITS = 200
"""Of a loop, run for calibration."""


def _python(units: int) -> Compute:
    def compute() -> None:
        for _ in repeat(None, 50 * units):
            pass

    return compute


def _matmul(units: int) -> Compute:
    a, out = np.full((_SIDE, _SIDE), 0.5, np.float32), np.empty((_SIDE, _SIDE), np.float32)

    def compute() -> None:
        for _ in repeat(None, units):
            np.matmul(a, a, out)

    return compute


LOOPS: dict[str, Callable[[int], Compute]] = {"python": _python, "matmul": _matmul}
"""Kinds: "python" keeps the interpreter lock, "matmul" gives it up; each on one core."""


def seconds(call: Compute) -> float:
    """Return what the fastest of five calls takes."""
    return min(_timed(call) for _ in range(5))


def loop(kind: str, duration_s: float) -> Compute:
    """Return a loop that takes about so long, on this rank."""
    unit_s = seconds(LOOPS[kind](_UNITS)) / _UNITS
    return LOOPS[kind](max(1, round(duration_s / unit_s)))


def _timed(call: Compute) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
