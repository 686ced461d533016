"""Divisions: which part of a whole parameter each rank of a tensor-parallel group has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from pycomm.errors import ArgumentError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def even(count: int, ranks: int) -> list[int]:
    """Return how many of `count` each rank gets: as equal as can be, the first ones more."""
    least, more = divmod(count, ranks)
    return [least + (rank < more) for rank in range(ranks)]


@dataclass(frozen=True)
class Division:
    """How a whole tensor is divided along one dimension.

    Attributes:
        shape: of the whole tensor.
        dim: the dimension that is divided.
        spans: for each rank its parts [begin, end) of that dimension, in the order in which its
            shard has them.
    """

    shape: tuple[int, ...]
    dim: int
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(
        cls, shape: Sequence[int], dim: int, ranks: int, blocks: int = 1, unit: int = 1
    ) -> Division:
        """Divide as evenly as can be.

        Args:
            shape: of the whole tensor.
            dim: the dimension to divide.
            ranks: how many shards.
            blocks: equal parts of the dimension, of each of which every rank gets some; the query,
                key and value of attention are three.
            unit: how many neighbours stay together, such as the neurons of an attention head.

        Raises:
            ArgumentError: a rank would get nothing, or a unit would be divided.
        """
        block = shape[dim] // blocks
        if shape[dim] % blocks or block % unit or block // unit < ranks:
            raise ArgumentError(
                f"dimension {dim} of a tensor of shape {tuple(shape)} cannot be divided over "
                f"{ranks} ranks: it has {blocks} × {block / unit:g} units of {unit}, of which each "
                f"rank needs one: use at most {block // unit} ranks"
            )
        bounds = [0, *accumulate(unit * count for count in even(block // unit, ranks))]
        starts = range(0, shape[dim], block)
        spans = [tuple((s + begin, s + end) for s in starts) for begin, end in pairwise(bounds)]
        return cls(tuple(shape), dim, tuple(spans))

    def counts(self) -> list[int]:
        """Return how many elements along the dimension each rank has."""
        return [sum(end - begin for begin, end in spans) for spans in self.spans]

    def shard_shape(self, rank: int) -> tuple[int, ...]:
        """Return the shape of a rank's shard."""
        shape = list(self.shape)
        shape[self.dim] = self.counts()[rank]
        return tuple(shape)


def take_shard(full: torch.Tensor, division: Division, rank: int) -> torch.Tensor:
    """Return a rank's part of a whole tensor, in memory of its own.

    Only that part is read: `full` may be a mapped file.

    Raises:
        ArgumentError: `full` has another shape.
    """
    if tuple(full.shape) != division.shape:
        raise ArgumentError(
            f"rank {rank}: a tensor of shape {tuple(full.shape)} is not the whole one, which has "
            f"shape {division.shape}"
        )
    spans = division.spans[rank]
    return torch.cat([full.narrow(division.dim, b, e - b) for b, e in spans], division.dim)


def full_tensor(shard: torch.Tensor, division: Division, comm: Communicator) -> torch.Tensor:
    """Return the whole tensor from the ranks' shards, on every rank; collective.

    Args:
        shard: this rank's part: of the parameter, its gradient, or state of its optimizer.
        division: of the parameter, see `divisions`.
        comm: the tensor-parallel group.

    Raises:
        ArgumentError: `shard` has another shape than the division says.
    """
    if tuple(shard.shape) != division.shard_shape(comm.rank):
        raise ArgumentError(
            f"rank {comm.rank}: a shard of shape {tuple(shard.shape)} is not this rank's, which "
            f"has shape {division.shard_shape(comm.rank)} of {division.shape}"
        )
    rows = shard.detach().movedim(division.dim, 0).contiguous()
    gathered = comm.all_gather(rows, counts=division.counts())
    full = torch.empty(division.shape, dtype=shard.dtype, device=shard.device)
    target, begin = full.movedim(division.dim, 0), 0
    for low, high in (span for spans in division.spans for span in spans):
        target[low:high] = gathered[begin : begin + high - low]
        begin += high - low
    return full
