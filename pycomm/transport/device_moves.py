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
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from pycomm.arrays import View
from pycomm.kernels.device import DeviceView
from pycomm.transport.job import Job
from pycomm.types import DType

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


class Reduction(NamedTuple):
    """A Reduce, as kernels take it."""

    sources: list[DeviceView]
    targets: list[DeviceView]


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
    count = max(job.input.count, job.output.count)
    return _chunks(job.kind, job.counts, job.sent, job.root, count, rank)


class Cut(NamedTuple):
    """How the sources of a call are cut: the same for all calls of its shape.

    Attributes:
        chunks: those of every rank's source, see `chunks_of`.
        offsets: where they begin.
        longest: the elements of the longest one.
        slot: the bytes of a ring's segment for each chunk.
        step: how many elements fit there.
    """

    chunks: list[tuple[int, ...]]
    offsets: list[tuple[int, ...]]
    longest: int
    slot: int
    step: int


def cut(job: Job, size: int, segment_bytes: int) -> Cut:
    """Return how the sources of a call of `size` ranks are cut."""
    count, item = max(job.input.count, job.output.count), job.dtype.itemsize
    return _cut(job.kind, job.counts, job.sent, job.root, count, item, size, segment_bytes)


@lru_cache(maxsize=256)
def _cut(
    kind: str,
    counts: tuple[int, ...],
    sent: tuple[tuple[int, ...], ...],
    root: int,
    count: int,
    item: int,
    size: int,
    segment_bytes: int,
) -> Cut:
    chunks = [_chunks(kind, counts, sent, root, count, rank) for rank in range(size)]
    slot = segment_bytes // max(map(len, chunks)) // LINE_BYTES * LINE_BYTES
    offsets = [tuple(accumulate(c, initial=0)) for c in chunks]
    return Cut(chunks, offsets, max(map(max, filter(None, chunks))), slot, slot // item)


def _chunks(
    kind: str,
    counts: tuple[int, ...],
    sent: tuple[tuple[int, ...], ...],
    root: int,
    count: int,
    rank: int,
) -> tuple[int, ...]:
    if kind in ROOT_ONLY and rank != root:
        return ()
    if kind in ("all_gather", "gather"):
        return (counts[rank],)
    if kind == "all_to_all" and sent:
        return sent[rank]
    return counts or (count,)


def moves(job: Job, rank: int, now: Round) -> list[Copy | Reduce]:
    """Return what `rank` does in a round, once all sources of the round are there."""
    target = job.output.address + now.begin * job.dtype.itemsize
    found = list(_KINDS[job.kind](job, rank, now, target))
    return [m for m in found if (m.elements if isinstance(m, Reduce) else m.nbytes)]


def enqueued(found: list[Copy | Reduce], dtype: DType, device: int) -> list[Copy | Reduction]:
    """Return what to enqueue on `device` for moves: no copies of memory to itself."""
    steps: list[Copy | Reduction] = []
    for move in found:
        if isinstance(move, Reduce):
            nbytes = move.elements * dtype.itemsize
            both = ([DeviceView(a, nbytes, device) for a in of] for of in move[:2])
            steps.append(Reduction(*both))
        elif move.target != move.source:
            steps.append(move)
    return steps


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
