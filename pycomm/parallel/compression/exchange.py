"""The exchange of compressed chunks: everything is sent once as a chunk, and once as its sum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pycomm.parallel.compression.base import Compression, Leftover, keep_finite

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

    def leftovers(self) -> list[Leftover]:
        """Return residuals, and those of the sums in this rank's chunk: from element `begin` on."""
        found = super().leftovers()
        for view, of_view in zip(self.views, found):
            begin, part = self._part_of_sums(view)
            of_view["sums"] = {"begin": begin, "residual": part.clone()}
        return found

    def restore(self, saved: Sequence[Sequence[Leftover]]) -> None:
        """Take residuals, and those of sums from whoever had them, on any number of ranks."""
        super().restore(saved)
        self.state["residual_of_sums"].zero_()
        for view, ranks in zip(self.views, saved):
            begin, part = self._part_of_sums(view)
            for sums in (of_rank["sums"] for of_rank in ranks if "sums" in of_rank):
                _copy_common(sums["begin"], sums["residual"], begin, part)

    def _part_of_sums(self, view: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Return the elements of a view, in its order of memory, in this rank's chunk of sums.

        Returns:
            The number of the first of them in the view, and their part of the residual of sums.
        """
        chunk, start = self.comm.rank * self.length, self._start_of(view)
        residual = self.state["residual_of_sums"]
        begin = min(max(start, chunk), start + view.numel())
        end = max(begin, min(start + view.numel(), chunk + len(residual)))
        return begin - start, residual[begin - chunk : end - chunk] if end > begin else residual[:0]

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


def _copy_common(begin: int, values: torch.Tensor, into_begin: int, into: torch.Tensor) -> None:
    """Copy the elements that two ranges have in common, each (first element, values from it on)."""
    first = max(begin, into_begin)
    last = min(begin + len(values), into_begin + len(into))
    if last > first:
        part = values[first - begin : last - begin]
        into[first - into_begin : last - into_begin].copy_(part)
