"""The shapes of what collectives gather and scatter, from `counts` of rows; bad ones raise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pycomm.errors import ArgumentError

Shape = tuple[int, ...]


def gathered(
    shape: Shape, rank: int, size: int, counts: Sequence[int] | None
) -> tuple[Shape, tuple[int, ...]]:
    """Return the shape of an all_gather's result and every rank's number of elements."""
    if counts is None:
        return (size, *shape), (math.prod(shape),) * size
    _check_counts(counts, rank, size)
    if not shape or shape[0] != counts[rank]:
        raise ArgumentError(
            f"rank {rank}: an array of shape {shape} has not counts[{rank}]={counts[rank]} rows"
        )
    row = math.prod(shape[1:])
    return (sum(counts), *shape[1:]), tuple(c * row for c in counts)


def scattered(
    shape: Shape, rank: int, size: int, counts: Sequence[int] | None
) -> tuple[Shape, tuple[int, ...]]:
    """Return the shape of this rank's chunk of a scatter and every rank's number of elements."""
    rows = shape[0] if shape else 0
    if counts is None:
        if not shape or rows % size:
            raise ArgumentError(
                f"rank {rank}: {size} ranks cannot get equal chunks of shape {shape}: axis 0 must "
                "be divisible by the number of ranks, or pass counts="
            )
        counts = (rows // size,) * size
    _check_counts(counts, rank, size)
    if rows != sum(counts):
        raise ArgumentError(
            f"rank {rank}: an array of shape {shape} has not sum(counts)={sum(counts)} rows"
        )
    row = math.prod(shape[1:])
    return (counts[rank], *shape[1:]), tuple(c * row for c in counts)


def _check_counts(counts: Sequence[int], rank: int, size: int) -> None:
    if len(counts) != size or min(counts) < 0:
        raise ArgumentError(
            f"rank {rank}: counts={list(counts)} needs {size} entries, one a rank, none negative"
        )
