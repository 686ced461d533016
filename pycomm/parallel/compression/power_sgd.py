"""powersgd: gradients of matrices travel as two thin factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pycomm.errors import ArgumentError
from pycomm.parallel.compression.base import Compression, Leftover, compression, keep_finite
from pycomm.parallel.compression.matrices import (
    as_matrix,
    deal,
    next_start,
    product,
    random_start,
)

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


@compression("powersgd")
class PowerSGD(Compression):
    """A reduction of each matrix M, (a, b), as a product of P, (a, rank), and Qᵀ, (rank, b).

    1. Every rank adds its residual, and multiplies P = M·Q, with Q of the step before.
    2. reduce_scatter of all P: each rank gets some of the sums, makes their columns orthonormal,
       and all_gather gives them to all.
    3. Every rank multiplies Q = Mᵀ·P; all_reduce.
    4. The sum of all M is P·Qᵀ; a rank's residual is its M less the average.

    Gradients of one dimension, and such that two factors would be no smaller, are summed as they
    are. P·Qᵀ is formed by single multiplications and additions, so that it has the same bits on any
    processor and with any number of threads.

    Each rank sends 2(n−1)/n of all P, all Q, and the rest. Source: Vogels et al., PowerSGD (2019),
    algorithms 1 and 2.

    Args:
        rank: of the factors, ≥ 1.
    """

    def __init__(
        self,
        comm: Communicator,
        flat: torch.Tensor,
        views: Sequence[torch.Tensor],
        op: str,
        rank: int = 4,
    ):
        super().__init__(comm, flat, views, op)
        if rank < 1:
            raise ArgumentError(f"rank={rank} of powersgd must be ≥ 1 (rank {comm.rank})")
        self.rank = rank
        found = [as_matrix(view, flat) for view in views]
        self._matrices = [m for m in found if m.shortens(rank)]
        self._places = [i for i, m in enumerate(found) if m.shortens(rank)]
        self._rest = [m for m in found if not m.shortens(rank)]
        dealt = deal([m.rows * rank for m in self._matrices], comm.size)
        self._counts = [sum(m.rows * rank for m in self._matrices[some]) for some in dealt]
        self._owned = self._matrices[dealt[comm.rank]]
        self._left = self._empty(sum(self._counts), dtype=self.work)
        self._own = self._empty(self._counts[comm.rank], dtype=self.work)
        columns = sum(m.columns for m in self._matrices)
        self._right = self._empty(columns * rank, dtype=self.work)
        self._plain = self._empty(sum(m.count for m in self._rest), dtype=flat.dtype)
        self._start = random_start(self._right)
        self.state["right"] = self._start.clone()

    @classmethod
    def settings(cls, text: str) -> dict[str, Any]:
        """Return the rank."""
        if not text.isdecimal():
            raise ArgumentError(f"compression=powersgd:{text}: {text!r} is no rank")
        return {"rank": int(text)}

    @property
    def wire_bytes(self) -> int:
        """Bytes sent in one reduction: both factors, and what is not compressed."""
        traffic = (
            ("reduce_scatter", self._left),
            ("all_gather", self._left),
            ("all_reduce", self._right),
            ("all_reduce", self._plain),
        )
        return sum(self._sent(kind, buffer.nbytes) for kind, buffer in traffic)

    def leftovers(self) -> list[Leftover]:
        """Return residuals, and of each matrix the Q that the next step begins with."""
        found = super().leftovers()
        for at, q in zip(self._places, self._rights(self.state["right"])):
            found[at]["right"] = q.clone()
        return found

    def restore(self, saved: Sequence[Sequence[Leftover]]) -> None:
        """Take residuals; and each Q, equal on all ranks, if it has this rank of factors."""
        super().restore(saved)
        self.state["right"].copy_(self._start)
        for at, q in zip(self._places, self._rights(self.state["right"])):
            for of_rank in saved[at][:1]:
                if "right" in of_rank and of_rank["right"].shape == q.shape:
                    q.copy_(of_rank["right"])

    def _reduce(self) -> None:
        if self._rest:
            self._reduce_rest()
        if self._matrices:
            residual = self.state["residual"]
            self._reduce_matrices([m.of(residual).add_(m.of(self.flat)) for m in self._matrices])

    def _reduce_rest(self) -> None:
        torch.cat([m.of(self.flat).view(-1) for m in self._rest], out=self._plain)
        self.comm.all_reduce(self._plain, "sum" if self.divisor == 1 else "avg")
        for m, part in zip(self._rest, self._plain.split([m.count for m in self._rest])):
            m.of(self.flat).copy_(part.view(m.rows, m.columns))

    def _reduce_matrices(self, matrices: Sequence[torch.Tensor]) -> None:
        lefts, rights = self._lefts(self._left), self._rights(self._right)
        for x, p, q in zip(matrices, lefts, self._rights(self.state["right"])):
            torch.mm(x, q, out=p)
        self._orthonormalise()
        for x, p, q in zip(matrices, lefts, rights):
            torch.mm(x.T, p, out=q)
        self.comm.all_reduce(self._right)
        for m, x, p, q in zip(self._matrices, matrices, lefts, rights):
            total = product(p, q)
            m.of(self.flat).copy_(total.div(self.divisor))
            keep_finite(x.sub_(total.div_(self.comm.size)))
        starts = self._rights(self._start)
        for old, q, first in zip(self._rights(self.state["right"]), rights, starts):
            old.copy_(next_start(q, first))

    def _orthonormalise(self) -> None:
        """Add the P of all ranks, and make their columns orthonormal: each on one rank."""
        self.comm.reduce_scatter(self._left, out=self._own, counts=self._counts)
        sizes = [m.rows * self.rank for m in self._owned]
        for m, part in zip(self._owned, self._own.split(sizes)):
            p = part.view(m.rows, self.rank)
            p.copy_(torch.linalg.qr(p)[0])
        self.comm.all_gather(self._own, out=self._left, counts=self._counts)

    def _lefts(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        parts = buffer.split([m.rows * self.rank for m in self._matrices])
        return [part.view(-1, self.rank) for part in parts]

    def _rights(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        parts = buffer.split([m.columns * self.rank for m in self._matrices])
        return [part.view(-1, self.rank) for part in parts]
