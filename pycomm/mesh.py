"""Mesh: ranks arranged as dp × pp × tp, with a Communicator along each of the three."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from pycomm.communicator import Communicator
from pycomm.errors import ArgumentError, MismatchError

DIMENSIONS = ("dp", "pp", "tp")
"""Data, pipeline and tensor parallelism; neighbours along the last one talk most."""

_logger = logging.getLogger(__name__)


class Mesh:
    """The ranks of a Communicator, each with a place in dp × pp × tp; collective.

    Neighbours along tp have the nearest places, then those along pp. Places are given to ranks in
    their order, but so that a tp group shares a host wherever hosts have ranks enough for it.

    Attributes:
        comm: all ranks, as it was given.
        shape: how many ranks lie along each dimension, by its name.
        coords: this rank's place along each dimension, 0…shape−1, which is its rank in
            `mesh["dp"]`, `mesh["pp"]` and `mesh["tp"]`.

    Args:
        dp: into how many shares a batch is divided.
        pp: into how many stages, one after the other, the model is split.
        tp: over how many ranks each layer of a stage is divided.
            One of the three may be None: then it is what the others leave.

    Raises:
        ArgumentError: the product is not the number of ranks; on every rank.
        MismatchError: ranks passed different numbers; on every rank.
    """

    def __init__(
        self, comm: Communicator, dp: int | None = 1, pp: int | None = 1, tp: int | None = 1
    ):
        _check_equal(comm, (dp, pp, tp))
        sizes = _sizes((dp, pp, tp), comm.size)
        self.comm = comm
        self.shape = dict(zip(DIMENSIONS, sizes))
        self._ranks = _places(comm.hosts, self.shape["tp"])
        place = self._ranks.index(comm.rank)
        self.coords = dict(zip(DIMENSIONS, _coordinates(place, sizes)))
        if comm.rank == 0 and (apart := self._apart()):
            _logger.warning(
                "tensor parallelism between hosts is slow: %s; use tp=%s, or start as many ranks "
                "on each host",
                apart,
                " or ".join(map(str, _divisors(_common(comm.hosts)))),
            )
        self._along = {name: self._split(name) for name in DIMENSIONS}

    def __getitem__(self, name: str) -> Communicator:
        """Return the Communicator of the ranks that differ from this one only along `name`."""
        if name not in self._along:
            raise ArgumentError(f"a mesh has no dimension {name!r}: use 'dp', 'pp' or 'tp'")
        return self._along[name]

    def rank_at(self, dp: int = 0, pp: int = 0, tp: int = 0) -> int:
        """Return the rank in `comm` that has a place."""
        sizes = self.shape
        return self._ranks[(dp * sizes["pp"] + pp) * sizes["tp"] + tp]

    def describe(self) -> str:
        """Return a table of all ranks in the order of their places: host, and place along each."""
        sizes, hosts = [*self.shape.values()], self.comm.hosts
        rows = [["rank", "host", *DIMENSIONS]]
        for place, rank in enumerate(self._ranks):
            rows.append([*map(str, (rank, hosts[rank], *_coordinates(place, sizes)))])
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
        return "\n".join([f"{self.comm.size} ranks as {self}", *lines])

    def close(self) -> None:
        """Close the Communicators along the dimensions; `comm` stays open."""
        for comm in self._along.values():
            comm.close()

    def __str__(self) -> str:
        return " × ".join(f"{name}={size}" for name, size in self.shape.items())

    def _split(self, name: str) -> Communicator:
        color = 0
        for other in DIMENSIONS:
            if other != name:
                color = color * self.shape[other] + self.coords[other]
        return self.comm.split(color, self.coords[name])

    def _apart(self) -> str:
        """Return the tp groups that do not share a host, in words."""
        size, hosts = self.shape["tp"], self.comm.hosts
        groups = [self._ranks[i : i + size] for i in range(0, len(self._ranks), size)]
        return "; ".join(
            "ranks " + ", ".join(f"{rank} on {hosts[rank]}" for rank in group)
            for group in groups
            if len({hosts[rank] for rank in group}) > 1
        )


def _check_equal(comm: Communicator, sizes: tuple[int | None, ...]) -> None:
    everyone = comm.all_gather_object(sizes)
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise MismatchError(
                f"rank {comm.rank}: a Mesh is made of (dp, pp, tp)={everyone[0]} on rank 0, but of "
                f"{other} on rank {rank}: pass the same on every rank"
            )


def _sizes(wanted: Sequence[int | None], ranks: int) -> tuple[int, ...]:
    """Return the three sizes, with the one that is None filled in."""
    told = " × ".join(f"{name}={size}" for name, size in zip(DIMENSIONS, wanted))
    known = [size for size in wanted if size is not None]
    if len(known) < len(wanted) - 1 or not all(type(s) is int and s > 0 for s in known):
        raise ArgumentError(f"{told}: pass integers ≥ 1, and None for one of them at most")
    rest = ranks // math.prod(known)
    sizes = tuple(rest if size is None else size for size in wanted)
    if math.prod(sizes) != ranks:
        raise ArgumentError(
            f"{told} is not {ranks}, the number of ranks: each has to be one of "
            f"{', '.join(map(str, _divisors(ranks)))}, such that their product is {ranks}"
        )
    return sizes


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _common(hosts: Sequence[str]) -> int:
    """Return the largest size of groups into which every host's ranks can be divided."""
    return math.gcd(*(hosts.count(host) for host in hosts))


def _places(hosts: Sequence[str], tp: int) -> list[int]:
    """Return the ranks in the order of their places, given where each one runs.

    First each host's ranks, as many as make whole tp groups; then those that are left over.
    """
    whole: list[int] = []
    for host in dict.fromkeys(hosts):
        mates = [rank for rank, other in enumerate(hosts) if other == host]
        whole += mates[: len(mates) // tp * tp]
    return whole + [rank for rank in range(len(hosts)) if rank not in set(whole)]


def _coordinates(place: int, sizes: Iterable[int]) -> tuple[int, ...]:
    """Return where a place lies along each dimension; the last one runs fastest."""
    coordinates: list[int] = []
    for size in reversed([*sizes]):
        place, coordinate = divmod(place, size)
        coordinates.insert(0, coordinate)
    return tuple(coordinates)
