"""Gradients as matrices, and what PowerSGD computes with them, to the same bits everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

_SEED = 0
_IN_CACHE = 1 << 16
"""How many elements of a product are formed at a time."""


@dataclass(frozen=True)
class Matrix:
    """A gradient as a matrix of rows × columns, in its order in memory, at `offset` in a bucket."""

    offset: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """How many elements it has."""
        return self.rows * self.columns

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the part of a bucket, or of what is like it, that is this matrix."""
        return flat[self.offset : self.offset + self.count].view(self.rows, self.columns)

    def shortens(self, rank: int) -> bool:
        """Say whether two factors of this rank have fewer elements."""
        return rank * (self.rows + self.columns) < self.count


def as_matrix(view: torch.Tensor, flat: torch.Tensor) -> Matrix:
    """Return a dense part of a bucket as a matrix: its outermost axis in memory × all others."""
    offset = view.storage_offset() - flat.storage_offset()
    axes = sorted(zip(view.stride(), view.shape), key=lambda axis: -axis[0])
    rows = next((size for _, size in axes if size != 1), 1)
    return Matrix(int(offset), rows, view.numel() // max(1, rows))


def deal(sizes: Sequence[int], ranks: int) -> list[slice]:
    """Return for each rank which of the items in a row it gets: about as much for each."""
    ends = list(accumulate(sizes, initial=0))
    owner = [
        min(ranks - 1, (start + end) * ranks // (2 * max(1, ends[-1])))
        for start, end in zip(ends, ends[1:])
    ]
    return [slice(sum(o < r for o in owner), sum(o <= r for o in owner)) for r in range(ranks)]


def random_start(like: torch.Tensor) -> torch.Tensor:
    """Return normal numbers in the shape of `like`: the same everywhere."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def next_start(q: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return `q`, (columns, rank), to begin the next step with: the largest of a column is ±1.

    Columns that are zero or not finite, from which no step leads away, are those of `start`.
    """
    most = q.abs().amax(0)
    return torch.where((most > 0) & most.isfinite(), q / most, start)


def product(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return P·Qᵀ of (rows, rank) and (columns, rank), rounded after each × and each +."""
    out = p.new_empty(len(p), len(q))
    rows = max(1, _IN_CACHE // len(q)) if p.device.type == "cpu" else len(p)
    columns = q.T.contiguous()
    for some, part in zip(p.split(rows), out.split(rows)):
        torch.mul(some[:, :1], columns[0], out=part)
        for k in range(1, len(columns)):
            part.add_(some[:, k : k + 1] * columns[k])
    return out
