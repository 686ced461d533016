"""A collective as transports and algorithms see it: memory, element type, operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from pycomm.arrays import NOTHING, View
from pycomm.types import SUM, DType, ReduceOp


@dataclass
class Job:
    """One rank's part in a collective.

    kind            input                       output
    all_reduce      count elements              the same memory as the input
    broadcast       NOTHING                     count elements; read on the root, written elsewhere
    all_gather      counts[rank] elements       sum(counts) elements, in rank order
    reduce_scatter  sum(counts) elements        counts[rank] elements
    reduce          count elements              on the root: the same memory as the input
    gather          counts[rank] elements       on the root: sum(counts) elements, in rank order
    scatter         on the root: sum(counts)    counts[rank] elements
    all_to_all      what goes to each rank      what comes from each rank; see `sent`
    barrier         NOTHING                     NOTHING

    Attributes:
        sent: of an all_to_all, sent[s][r] elements go from rank s to rank r; the same on every
            rank. Empty if every rank sends `counts`, which are then all equal.
        shape: what the ranks compare instead of numbers of elements: the shape of a chunk, or
            of a row where the numbers of rows differ by rank.
        part_of: the public operation, in words, that this job prepares; ranks compare it, too.
        detail: what only those ranks compare that do not have 0; see `guard.detail`.
        header: what a scatter's root says of a chunk.
        allocate: makes the output of a scatter from that, on ranks that have none.
    """

    kind: str
    dtype: DType
    input: View = NOTHING
    output: View = NOTHING
    counts: tuple[int, ...] = ()
    op: ReduceOp = SUM
    root: int = 0
    fingerprint: int = 0
    sent: tuple[tuple[int, ...], ...] = ()
    shape: tuple[int, ...] | None = None
    part_of: str = ""
    detail: int = 0
    header: tuple[int, ...] = ()
    allocate: Callable[[Sequence[int]], View] | None = None

    @property
    def device(self) -> int:
        """The number of the GPU that its arrays are on, or HOST."""
        return max(self.input.device, self.output.device)

    @property
    def nbytes(self) -> int:
        """The size of the larger of input and output on the rank where it is largest."""
        if not self.counts:
            return max(self.input.nbytes, self.output.nbytes)
        most = max(map(sum, (*self.sent, *zip(*self.sent)))) if self.sent else sum(self.counts)
        return most * self.dtype.itemsize

    @property
    def elements(self) -> int | tuple[int, ...]:
        """What the ranks compare: `shape`, every rank's number of elements, or the one array's."""
        if self.shape is not None:
            return self.shape
        return self.counts or max(self.input.count, self.output.count)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each rank's chunk starts, in elements; one more entry for the end."""
        return (0, *accumulate(self.counts))

    def received(self, rank: int) -> tuple[int, ...]:
        """Return how many elements of an all_to_all come from each rank to `rank`."""
        return tuple(row[rank] for row in self.sent) if self.sent else self.counts


def traffic_bytes(job: Job, rank: int, size: int) -> tuple[list[int], list[int], list[int], int]:
    """Return where the chunks of an all_to_all lie, in bytes, as csrc/shm/exchange.h wants it.

    Returns:
        The offsets of the chunks that `rank` sends and of those that it receives; where its chunk
        begins in what each rank offers, which is all but rank 0's first; and the longest chunk
        between two ranks.
    """
    item = job.dtype.itemsize
    if not job.sent:
        chunk = job.counts[rank] * item
        offsets = [r * chunk for r in range(size + 1)]
        starts = [max(0, rank - 1) * chunk, *[rank * chunk] * (size - 1)]
        return offsets, offsets, starts, chunk if size > 1 else 0
    sent = [o * item for o in accumulate(job.sent[rank], initial=0)]
    received = [o * item for o in accumulate(job.received(rank), initial=0)]
    starts = [sum(row[int(s == 0) : rank]) * item for s, row in enumerate(job.sent)]
    between = [n for s, row in enumerate(job.sent) for r, n in enumerate(row) if s != r]
    return sent, received, starts, max(between, default=0) * item
