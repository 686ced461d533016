"""Compares what an implementation gives with what it must give, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.memory import Buffers
from bench.operations import Case
from bench.patterns import Pattern

Batch = Callable[[int], Any]
"""Does an operation so many times, one after the other; returns the last result if it is new."""


def count_wrong(
    case: Case, buffers: Buffers, pattern: Pattern, batch: Batch, plant: int | None = None
) -> int:
    """Run an operation once on known inputs, and count this rank's wrong elements.

    Wrong are also elements of an input that changed though the output is elsewhere, and bytes
    behind the buffers.

    Args:
        case: what is run.
        buffers: its memory; poisoned before the input is laid into it.
        pattern: the inputs and results.
        batch: the implementation.
        plant: an element to falsify on the last rank, so that there is something to find.
    """
    buffers.poison()
    given = pattern.of(case.rank, 0, case.elements(case.op.input))
    if case.gives:
        buffers.give(given)
    got = buffers.output(batch(1))
    if plant is not None and case.rank == case.ranks - 1:
        got[plant % got.size :].view(np.uint8)[0] ^= 0x11
    expected = case.op.result(case, pattern)
    wrong = 0 if expected is None else _different(got, expected)
    if case.place == "out" and case.gives:
        wrong += _different(buffers.input(), given)
    return wrong + buffers.wrong_guards()


def _different(got: np.ndarray, expected: np.ndarray) -> int:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return max(got.size, expected.size)
    if got.dtype == np.bool_:
        got, expected = got.view(np.uint8), expected.view(np.uint8)
    return int(np.count_nonzero(got != expected))
