"""Owners: which rank owns what of a model, and who has a copy of it when it has died."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pycomm.errors import StateLostError
from pycomm.parallel.layout import Place
from pycomm.parallel.shards import Piece


@dataclass(frozen=True)
class Owners:
    """The ranks of one communicator, by their numbers there.

    Attributes:
        rank: this one.
        pieces: what each rank owns.
        mapped: whether all see each other's copies in shared memory.
        distance: else rank r's copy is also at rank r + distance.
    """

    rank: int
    pieces: list[list[tuple[Place, Piece]]]
    mapped: bool
    distance: int

    @property
    def source(self) -> int:
        """The rank whose copy is sent to this one."""
        return (self.rank - self.distance) % len(self.pieces)

    @property
    def keeper(self) -> int:
        """The rank that this one's copy is sent to."""
        return self._keeper_of(self.rank)

    def holders(self, alive: Sequence[int]) -> list[int]:
        """Return for each rank a survivor who has a copy of what it owned.

        Raises:
            StateLostError: nobody has; the same on every survivor.
        """
        if self.mapped:
            return [alive[0]] * len(self.pieces)
        having = [[r, self._keeper_of(r)] for r in range(len(self.pieces))]
        lost = [r for r, ranks in enumerate(having) if not set(ranks) & set(alive)]
        if lost:
            raise self._lost(lost, alive)
        return [next(r for r in ranks if r in alive) for ranks in having]

    def _keeper_of(self, rank: int) -> int:
        return (rank + self.distance) % len(self.pieces)

    def _lost(self, lost: list[int], alive: Sequence[int]) -> StateLostError:
        parts = "; ".join(f"rank {r}, whose copy rank {self._keeper_of(r)} had" for r in lost)
        dead = tuple(r for r in range(len(self.pieces)) if r not in alive)
        return StateLostError(
            f"ranks {', '.join(map(str, dead))} of {len(self.pieces)} are dead (this was rank "
            f"{self.rank}), and parts of parameters and optimizer state are lost, those of {parts}",
            dead,
        )


NOBODY = Owners(-1, [], True, 0)
"""Nothing is owned yet."""
