"""topk: only the largest gradients travel, with their places."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from pycomm.errors import ArgumentError
from pycomm.parallel.compression.base import Compression, compression, keep_finite, without_overflow

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


@compression("topk")
class TopK(Compression):
    """A reduction of the k largest elements of each rank.

    1. Every rank adds its residual, and selects the k elements of largest magnitude; what it does
       not select is its new residual.
    2. all_gather of values, in the bucket's dtype, and places.
    3. Each rank adds the values of all ranks at their places, in rank order.

    Each rank sends (n−1)·k values and places (4 bytes). Source: Aji and Heafield, Sparse
    Communication for Distributed Gradient Descent (2017).

    Args:
        ratio: k / count, 0 < ratio ≤ 1; k is rounded up.
    """

    def __init__(
        self,
        comm: Communicator,
        flat: torch.Tensor,
        views: Sequence[torch.Tensor],
        op: str,
        ratio: float = 0.05,
    ):
        super().__init__(comm, flat, views, op)
        if not 0 < ratio <= 1:
            raise ArgumentError(f"ratio={ratio} of topk must be > 0 and ≤ 1 (rank {comm.rank})")
        self.k = ceil(ratio * flat.numel())
        self._places = torch.int32 if flat.numel() <= 1 << 31 else torch.int64
        align = max(self._places.itemsize, flat.itemsize)
        self._split = -(-self.k * flat.itemsize // align) * align
        nbytes = self._split + -(-self.k * self._places.itemsize // align) * align
        self._mine, self._all = self._empty(nbytes), self._empty(comm.size, nbytes)

    @classmethod
    def settings(cls, text: str) -> dict[str, Any]:
        """Return the ratio."""
        try:
            return {"ratio": float(text)}
        except ValueError:
            raise ArgumentError(f"compression=topk:{text}: {text!r} is no ratio") from None

    @property
    def wire_bytes(self) -> int:
        """Bytes sent in one reduction: values and places, to each other rank."""
        return self._sent("all_gather", self._all.numel())

    def _reduce(self) -> None:
        x = self._add_residual()
        places = largest(x, self.k)
        values, of_values = self._parts(self._mine)
        values.copy_(without_overflow(x[places], self.flat.dtype))
        of_values.copy_(places)
        x[places] -= values
        keep_finite(x)
        self.comm.all_gather(self._mine, self._all)
        total = torch.zeros_like(x) if x.dtype != self.flat.dtype else self.flat.zero_()
        for row in self._all:
            values, places = self._parts(row)
            total.index_add_(0, places, values.to(total.dtype))  # no place comes twice in a row
        self.flat.copy_(total.div_(self.divisor))

    def _parts(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = row[: self.k * self.flat.itemsize].view(self.flat.dtype)
        return values, row[self._split :].view(self._places)[: self.k]


def largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """Return the places of the `k` ≥ 1 elements of (count,) with the largest magnitudes.

    Of equal magnitudes the first are taken; NaN counts as infinity. The places are in ascending
    order, int64.
    """
    magnitude = x.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    least = magnitude.topk(k, sorted=False).values.min()
    above = (magnitude > least).nonzero().view(-1)
    equal = (magnitude == least).nonzero().view(-1)[: k - len(above)]
    return torch.cat([above, equal]).sort().values
