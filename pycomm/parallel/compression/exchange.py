"""The exchange of compressed chunks: everything is sent once as a chunk, and once as its sum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pycomm.parallel.compression.base import Compression, keep_finite

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

ALIGNMENT = 16
"""Chunks begin at multiples of so many elements."""


class Exchange(Compression):
    """A reduction in which each element is compressed by itself, or with its neighbours.

    1. Every rank adds its residual, compresses its n chunks, and sends chunk r to rank r; what
       compression took away is its new residual.
    2. Rank r adds what came in rank order, in float32, and adds the residual of its sums.
    3. It compresses the sum, and sends it to all; what that took away is the residual of sums.
    4. All decompress the same bytes.

    Each rank sends 2(n−1) compressed chunks of ⌈count/n⌉ elements, rounded up to 16. Source: Tang
    et al., DoubleSqueeze (2019), algorithm 1, with a server for every chunk.
    """

    def __init__(
        self,
        comm: Communicator,
        flat: torch.Tensor,
        views: Sequence[torch.Tensor],
        op: str,
    ):
        super().__init__(comm, flat, views, op)
        share = -(-flat.numel() // comm.size)
        self.length = -(-share // ALIGNMENT) * ALIGNMENT
        nbytes = self.row_bytes(self.length)
        self._sends, self._receives, self._sums = (self._empty(comm.size, nbytes) for _ in "123")
        self._mine = self._empty(nbytes)
        own = self.chunks(flat)[comm.rank]
        self.state["residual_of_sums"] = torch.zeros_like(own, dtype=torch.float32)

    @abstractmethod
    def row_bytes(self, length: int) -> int:
        """Return the compressed size of `length` elements, a multiple of 16."""

    @abstractmethod
    def encode(self, x: torch.Tensor, row: torch.Tensor) -> None:
        """Compress (at most `length`,) float32 into a row of bytes."""

    @abstractmethod
    def decode(self, rows: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Set `out`, float32, to the sum of what `rows` hold, added in their order."""

    @property
    def wire_bytes(self) -> int:
        """Bytes sent in one reduction: a compressed chunk to each other rank, twice."""
        nbytes = self._sends.numel()
        return self._sent("all_to_all", nbytes) + self._sent("all_gather", nbytes)

    def chunks(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the chunk of each rank; the last ones may be shorter, or empty."""
        starts = [r * self.length for r in range(self.comm.size)]
        return [x[start : start + self.length] for start in starts]

    def _reduce(self) -> None:
        for chunk, row in zip(self.chunks(self._add_residual()), self._sends):
            self._pack(chunk, row)
        self.comm.all_to_all(self._sends, self._receives)
        residual = self.state["residual_of_sums"]
        total = torch.empty_like(residual)
        self.decode(list(self._receives), total)
        total.div_(self.divisor) if self.divisor > 1 else total
        self._pack(residual.add_(total), self._mine)
        self.comm.all_gather(self._mine, self._sums)
        for chunk, row in zip(self.chunks(self.flat), self._sums):
            self._unpack(row, chunk)

    def _pack(self, x: torch.Tensor, row: torch.Tensor) -> None:
        """Compress `x` into a row; leave in `x` what that took away."""
        narrow = x.float()
        self.encode(narrow, row)
        arrived = torch.empty_like(narrow)
        self.decode([row], arrived)
        keep_finite(x.sub_(arrived))

    def _unpack(self, row: torch.Tensor, chunk: torch.Tensor) -> None:
        if chunk.dtype == torch.float32:
            return self.decode([row], chunk)
        wide = torch.empty_like(chunk, dtype=torch.float32)
        self.decode([row], wide)
        chunk.copy_(wide)
