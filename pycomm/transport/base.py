"""How bytes move between the ranks of one communicator: the interface that algorithms see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from pycomm.transport.job import Job


class Request(Protocol):
    """A transfer under way."""

    def test(self) -> bool:
        """Make progress and say whether the transfer is complete."""


class Transport(ABC):
    """Point-to-point transfers of bytes between ranks 0…size−1, in order for each pair.

    Messages carry no tags: the k-th receive from a peer takes the k-th message that it sent.
    Data are flat uint8 arrays. Sent memory must not change, and received memory must not be read,
    until `wait` returned for the request.
    """

    rank: int
    size: int
    fused: frozenset[str] = frozenset()
    """The collectives that this transport does as one operation, see `run`."""
    hosts: int = 1
    """On how many hosts they are."""
    local: Transport | None = None
    """The ranks on this one's host; None unless all of several hosts have as many, and over one."""
    across: Transport | None = None
    """The counterparts: the ranks with this one's number in `local`, one a host; None likewise."""
    ranks_by_host: Sequence[Sequence[int]] = ()
    """Where there are counterparts, the ranks of every host; hosts by their first rank."""

    @abstractmethod
    def isend(self, data: np.ndarray, peer: int) -> Request:
        """Start to send `data` to `peer`."""

    @abstractmethod
    def irecv(self, out: np.ndarray, peer: int) -> Request:
        """Start to receive exactly `out.nbytes` bytes from `peer`."""

    @abstractmethod
    def wait(self, *requests: Request) -> None:
        """Return when all of the requests are complete.

        Raises:
            CommTimeoutError: no progress for the communicator's timeout.
        """

    def run(self, job: Job) -> None:
        """Run a collective of `fused` as one operation."""
        raise NotImplementedError(f"{type(self).__name__} has no fused {job.kind}")


def group(hosts: Sequence[Hashable]) -> list[list[int]]:
    """Return the ranks of every host, hosts by their first rank; rank r is on hosts[r]."""
    return [[r for r, h in enumerate(hosts) if h == host] for host in dict.fromkeys(hosts)]


def counterparts(hosts: Sequence[Hashable], rank: int) -> tuple[list[int], list[int]] | None:
    """Return the node-mates of `rank`, and the ranks with its number among theirs, one a host.

    Args:
        hosts: by rank; hosts are numbered by their first rank, node-mates by rank.
        rank: which rank asks.

    Returns:
        None unless there are several hosts with the same number of ranks, more than one.
    """
    groups = group(hosts)
    if len(groups) == 1 or len({len(group) for group in groups}) > 1 or len(groups[0]) == 1:
        return None
    mates = next(ranks for ranks in groups if rank in ranks)
    return mates, [ranks[mates.index(rank)] for ranks in groups]
