"""How a collective of device arrays is cut into the hosts' collectives of its segments.

An array consists of chunks, and segment k takes the same elements of each: those from k·step on.
So sums keep the order of the whole array: where an order goes by chunks, the segment's chunk c
consists of elements of the array's chunk c.

kind            chunks that go down to the host     chunks that go up again
all_reduce      parts                               parts
reduce          parts                               root: parts
reduce_scatter  counts                              counts[rank]
all_gather      counts[rank]                        counts
gather          counts[rank]                        root: counts
broadcast       root: parts                         others: parts
scatter         root: counts                        counts[rank]
all_to_all      what goes to each rank              what comes from each rank

Parts are one chunk, or one for each rank where the order of summation goes by those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from pycomm.arrays import NOTHING, View
from pycomm.transport.job import Job

IN_PLACE = ("all_reduce", "reduce", "broadcast")
"""In these the hosts' collective has its result where its input was."""


class Run(NamedTuple):
    """Elements that follow each other in an array and in its segment: where they begin in each."""

    in_array: int
    in_segment: int
    elements: int


@dataclass(frozen=True)
class Segment:
    """The elements `begin` to `end` of every chunk, those that it has of them."""

    begin: int
    end: int

    def within(self, count: int) -> int:
        """Return how many elements of a chunk of `count` belong to the segment."""
        return max(0, min(self.end, count) - self.begin)

    def of(self, counts: Iterable[int]) -> tuple[int, ...]:
        """Return how many elements of each chunk do."""
        return tuple(map(self.within, counts))

    def runs(self, chunks: Sequence[int]) -> list[Run]:
        """Return where they are, if the chunks follow each other; neighbours make one run."""
        found: list[Run] = []
        taken = self.of(chunks)
        places = zip(accumulate(chunks, initial=0), accumulate(taken, initial=0), taken)
        for start, in_segment, count in places:
            last = found[-1] if found else Run(-1, 0, 0)
            if last.in_array + last.elements == start + self.begin:
                found[-1] = last._replace(elements=last.elements + count)
            elif count:
                found.append(Run(start + self.begin, in_segment, count))
        return found


def chunks_down(job: Job, rank: int, parts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunks of a rank's array that the others need; none if they need nothing."""
    if job.kind in ("broadcast", "scatter") and rank != job.root:
        return ()
    if job.kind in ("all_gather", "gather"):
        return (job.counts[rank],)
    if job.sent:
        return job.sent[rank]
    return job.counts or parts


def chunks_up(job: Job, rank: int, parts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunks of a rank's result; none if it has none, or has it already."""
    if job.kind in ("reduce", "gather") and rank != job.root:
        return ()
    if job.kind == "broadcast" and rank == job.root:
        return ()
    if job.kind in ("reduce_scatter", "scatter"):
        return (job.counts[rank],)
    if job.kind == "all_to_all":
        return job.received(rank)
    return job.counts or parts


def on_host(
    job: Job,
    rank: int,
    parts: tuple[int, ...],
    segment: Segment,
    source: np.ndarray,
    target: np.ndarray,
) -> Job:
    """Return the hosts' collective of a segment.

    Args:
        job: that of the device arrays.
        parts: see above.
        source: bytes of the host with what came down, of size for all of `parts` or counts.
        target: bytes of the host for what goes up; not used by the kinds IN_PLACE.
    """

    def view(memory: np.ndarray, chunks: tuple[int, ...]) -> View:
        if not chunks:
            return NOTHING
        count = sum(segment.of(chunks))
        data = memory[: count * job.dtype.itemsize]
        return View(data, job.dtype, count, memory.ctypes.data)

    down, up = chunks_down(job, rank, parts), chunks_up(job, rank, parts)
    if job.kind in IN_PLACE:
        given = whole = view(source, parts)
        if job.kind == "reduce" and rank != job.root:
            whole = NOTHING
        if job.kind == "broadcast":
            given = NOTHING
    else:
        given, whole = view(source, down), view(target, up)
    counts, sent = segment.of(job.counts), tuple(map(segment.of, job.sent))
    return Job(job.kind, job.dtype, given, whole, counts, job.op, job.root, sent=sent)
