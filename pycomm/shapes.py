"""The shapes of what collectives gather and scatter, from `counts` of rows; bad ones raise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, SupportsIndex

import numpy as np

from pycomm.errors import ArgumentError, MismatchError

Shape = tuple[int, ...]


def checked_tag(tag: Any, rank: int) -> int:
    """Return a message's tag, if it can be one."""
    try:
        number = index(tag)
    except TypeError:
        number = 1 << 63
    if not -(1 << 63) <= number < 1 << 63:
        raise ArgumentError(f"rank {rank}: tag={tag!r} is not an integer of 64 bits")
    return number


def checked_rank(value: SupportsIndex, name: str, rank: int, size: int) -> int:
    """Return `value` if it is a rank, or raise ArgumentError."""
    if not 0 <= (number := _number(value)) < size:
        raise ArgumentError(f"rank {rank}: {name}={value!r} is not one of 0…{size - 1}")
    return number


def checked_bytes(value: SupportsIndex, rank: int) -> int:
    """Return `value` if it is a number of bytes, or raise ArgumentError."""
    if (number := _number(value)) < 0:
        raise ArgumentError(f"rank {rank}: nbytes={value!r} is not a number of bytes: 0, 1, 2 …")
    return number


def checked_shape(value: int | Sequence[int], rank: int) -> Shape:
    """Return `value`, a length or several, if it is a shape, or raise ArgumentError."""
    shape = _numbers(value if isinstance(value, Iterable) else [value])
    if min(shape, default=0) < 0:
        raise ArgumentError(
            f"rank {rank}: shape={value!r} is not an int or a sequence of them, none negative"
        )
    return tuple(shape)


def _number(value: SupportsIndex) -> int:
    """Return an integer as an int, and −1 for anything else, a bool too."""
    try:
        return -1 if isinstance(value, bool) else index(value)
    except TypeError:
        return -1


def _numbers(values: Iterable[SupportsIndex]) -> list[int]:
    return [_number(value) for value in values]


def gathered(
    shape: Shape, rank: int, size: int, counts: Sequence[int] | None
) -> tuple[Shape, tuple[int, ...]]:
    """Return the shape of an all_gather's result and every rank's number of elements."""
    if counts is None:
        return (size, *shape), (math.prod(shape),) * size
    counts = _checked_counts(counts, rank, size)
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
    counts = _checked_counts(counts, rank, size)
    if rows != sum(counts):
        raise ArgumentError(
            f"rank {rank}: an array of shape {shape} has not sum(counts)={sum(counts)} rows"
        )
    row = math.prod(shape[1:])
    return (counts[rank], *shape[1:]), tuple(c * row for c in counts)


def one_each(shape: Shape, rank: int, size: int) -> Shape:
    """Return the shape of one rank's part of an array that has one for every rank on axis 0."""
    if not shape or shape[0] != size:
        raise ArgumentError(
            f"rank {rank}: an array of shape {shape} has not one part for each of {size} ranks: "
            f"axis 0 must have length {size}"
        )
    return shape[1:]


def exchanged(
    shape: Shape,
    rank: int,
    size: int,
    send_counts: Sequence[int],
    recv_counts: Sequence[int] | None,
) -> list[int]:
    """Return the counts of an all_to_all, to send and to receive; −1 where these are not known."""
    send = _checked_counts(send_counts, rank, size, "send_counts")
    if not shape or shape[0] != sum(send):
        raise ArgumentError(
            f"rank {rank}: an array of shape {shape} has not sum(send_counts)={sum(send)} rows"
        )
    if recv_counts is None:
        return send + [-1] * size
    return send + _checked_counts(recv_counts, rank, size, "recv_counts")


def checked_traffic(table: np.ndarray, rank: int) -> list[list[int]]:
    """Return how many rows go from every rank to every rank, once all of them agree.

    Args:
        table: of each rank `exchanged`, and the rows of its out=, or −1 without one.
        rank: this one.

    Raises:
        MismatchError: a rank expects other counts than are sent; on every rank the same.
    """
    size = len(table)
    sent, expected, rows = table[:, :size], table[:, size:-1].T, table[:, -1]
    problems = [
        f"rank {s} sends {sent[s, r]} rows to rank {r}, which expects {expected[s, r]}"
        for s, r in np.argwhere((expected >= 0) & (expected != sent)).tolist()
    ]
    totals = sent.sum(axis=0)
    problems += [
        f"rank {r} gets {totals[r]} rows, but its out= has {rows[r]}"
        for r in np.flatnonzero((rows >= 0) & (rows != totals)).tolist()
    ]
    if problems:
        head = f"rank {rank}: the counts of all_to_all disagree; no memory was changed"
        raise MismatchError("\n  ".join([head, *problems[:8]]))
    return sent.tolist()


def _checked_counts(counts: Sequence[int], rank: int, size: int, name: str = "counts") -> list[int]:
    numbers = _numbers(counts if isinstance(counts, Iterable) else [])
    if len(numbers) != size or min(numbers) < 0:
        raise ArgumentError(
            f"rank {rank}: {name}={counts!r} needs {size} entries, one a rank, integers, none "
            "negative"
        )
    return numbers
