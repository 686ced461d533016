"""What each rank enqueues for a collective of device arrays: copies and reductions of addresses.

Every rank's source is cut into chunks, one for each rank that reads a part of it, or a single one.
A round takes the same elements of every chunk: all of them where all sources are symmetric, else as
many as a segment holds. All ranks can read every source; each writes its own result, except that
an all_reduce writes to all of them at once.

kind            chunks of a rank's source   a rank
all_reduce      1                           reduces its share of all sources into all of them
reduce          1                           root: reduces all sources
reduce_scatter  counts                      reduces its chunk of all sources
all_gather      1                           copies all sources
gather          1                           root: copies all sources
broadcast       root: 1                     others: copy the root's source
scatter         root: counts                copies its chunk of the root's source
all_to_all      what goes to each rank      copies its chunk of every source
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from pycomm.arrays import View
from pycomm.transport.job import Job

LINE_BYTES = 512
"""Shares of a reduction end at multiples of it, as far as there are elements."""

ROOT_ONLY = ("broadcast", "scatter")
"""Of these only the root's source is read."""


class Copy(NamedTuple):
    """A copy from one address to another."""

    target: int
    source: int
    nbytes: int


class Reduce(NamedTuple):
    """A reduction of sources, in their order, into every one of the targets."""

    sources: list[int]
    targets: list[int]
    elements: int


@dataclass(frozen=True)
class Round:
    """A part of a collective that is done at once.

    Attributes:
        size: how many ranks there are.
        begin: its first element of every chunk.
        end: the one after its last; some chunks end before.
        at: (rank, chunk) → the address of element `begin` of a chunk of a rank's source.
        launchers: the ranks that launch the reductions of an all_reduce.
    """

    size: int
    begin: int
    end: int
    at: Callable[[int, int], int]
    launchers: Sequence[int]

    def within(self, count: int) -> int:
        """Return how many elements of a chunk of `count` belong to the round."""
        return max(0, min(self.end, count) - self.begin)

    def sources(self, chunk: int) -> list[int]:
        """Return the address of a chunk in every rank's source."""
        return [self.at(rank, chunk) for rank in range(self.size)]


def source_of(job: Job) -> View:
    """Return what other ranks may read of this one."""
    return job.output if job.kind in ("all_reduce", "broadcast") else job.input


def chunks_of(job: Job, rank: int) -> tuple[int, ...]:
    """Return how many elements the chunks of a rank's source have; none if nobody reads it."""
    if job.kind in ROOT_ONLY and rank != job.root:
        return ()
    if job.kind in ("all_gather", "gather"):
        return (job.counts[rank],)
    if job.kind == "all_to_all" and job.sent:
        return job.sent[rank]
    return job.counts or (max(job.input.count, job.output.count),)


def moves(job: Job, rank: int, now: Round) -> list[Copy | Reduce]:
    """Return what `rank` does in a round, once all sources of the round are there."""
    target = job.output.address + now.begin * job.dtype.itemsize
    found = list(_KINDS[job.kind](job, rank, now, target))
    return [m for m in found if (m.elements if isinstance(m, Reduce) else m.nbytes)]


def _all_reduce(job: Job, rank: int, now: Round, target: int) -> Iterator[Reduce]:
    """Reduce this rank's share: every launcher's has as many lines, or one less."""
    if rank not in now.launchers:
        return
    item, count = job.dtype.itemsize, now.within(job.output.count)
    lines = -(-count * item // LINE_BYTES)
    share, of = now.launchers.index(rank), len(now.launchers)
    low, high = (min(count, lines * k // of * LINE_BYTES // item) for k in (share, share + 1))
    sources = [address + low * item for address in now.sources(0)]
    yield Reduce(sources, sources, high - low)


def _reduce(job: Job, rank: int, now: Round, target: int) -> Iterator[Reduce]:
    if rank == job.root:
        yield Reduce(now.sources(0), [target], now.within(job.output.count))


def _reduce_scatter(job: Job, rank: int, now: Round, target: int) -> Iterator[Reduce]:
    yield Reduce(now.sources(rank), [target], now.within(job.counts[rank]))


def _broadcast(job: Job, rank: int, now: Round, target: int) -> Iterator[Copy]:
    if rank != job.root:
        nbytes = now.within(job.output.count) * job.dtype.itemsize
        yield Copy(target, now.at(job.root, 0), nbytes)


def _all_gather(job: Job, rank: int, now: Round, target: int) -> Iterator[Copy]:
    item = job.dtype.itemsize
    for peer, source in enumerate(now.sources(0)):
        nbytes = now.within(job.counts[peer]) * item
        yield Copy(target + job.offsets[peer] * item, source, nbytes)


def _gather(job: Job, rank: int, now: Round, target: int) -> Iterator[Copy]:
    if rank == job.root:
        yield from _all_gather(job, rank, now, target)


def _scatter(job: Job, rank: int, now: Round, target: int) -> Iterator[Copy]:
    yield Copy(target, now.at(job.root, rank), now.within(job.counts[rank]) * job.dtype.itemsize)


def _all_to_all(job: Job, rank: int, now: Round, target: int) -> Iterator[Copy]:
    item, received = job.dtype.itemsize, job.received(rank)
    offsets = accumulate(received, initial=0)
    for source, count, offset in zip(now.sources(rank), received, offsets):
        yield Copy(target + offset * item, source, now.within(count) * item)


_KINDS: dict[str, Callable[[Job, int, Round, int], Iterator[Copy | Reduce]]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "gather": _gather,
    "scatter": _scatter,
    "all_to_all": _all_to_all,
}
