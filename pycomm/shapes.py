"""The shapes of what collectives gather and scatter, from `counts` of rows; bad ones raise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

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


def checked_rank(value: int, name: str, rank: int, size: int) -> int:
    """Return `value` if it is a rank, or raise ArgumentError."""
    if not 0 <= value < size:
        raise ArgumentError(f"rank {rank}: {name}={value} is not one of 0…{size - 1}")
    return value


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
    send = [index(c) for c in send_counts]
    _check_counts(send, rank, size, "send_counts")
    if not shape or shape[0] != sum(send):
        raise ArgumentError(
            f"rank {rank}: an array of shape {shape} has not sum(send_counts)={sum(send)} rows"
        )
    receive = [-1] * size if recv_counts is None else [index(c) for c in recv_counts]
    if recv_counts is not None:
        _check_counts(receive, rank, size, "recv_counts")
    return send + receive


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


def _check_counts(counts: Sequence[int], rank: int, size: int, name: str = "counts") -> None:
    if len(counts) != size or min(counts) < 0:
        raise ArgumentError(
            f"rank {rank}: {name}={list(counts)} needs {size} entries, one a rank, none negative"
        )
