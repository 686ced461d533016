"""Shards: which elements of a bucket each rank owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 4096
"""Parameters are cut at multiples of so many elements; sums of squares are formed over these."""


@dataclass(frozen=True)
class Piece:
    """Elements [begin, end) of the parameter in one slot of a bucket, in the order of memory."""

    slot: int
    begin: int
    end: int


def plan_shards(counts: Sequence[int], ranks: int) -> list[list[Piece]]:
    """Return the pieces of each rank; in the order of ranks they go through the bucket once.

    A block belongs to the rank in whose share of all elements it starts, so that shares differ by
    a block at most. A parameter of no elements is a piece, too: somebody keeps its state.

    Args:
        counts: the elements of the parameter in each slot.
        ranks: how many shards.
    """
    shards: list[list[Piece]] = [[] for _ in range(ranks)]
    total, before = sum(counts), 0
    for slot, count in enumerate(counts):
        for begin in range(0, max(count, 1), BLOCK):
            owner = min((before + begin) * ranks // max(total, 1), ranks - 1)
            _append(shards[owner], Piece(slot, begin, min(begin + BLOCK, count)))
        before += count
    return shards


def _append(shard: list[Piece], piece: Piece) -> None:
    if shard and shard[-1].slot == piece.slot:
        piece = Piece(piece.slot, shard.pop().begin, piece.end)
    shard.append(piece)
