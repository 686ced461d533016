"""The ring: every chunk goes round once to be reduced, and once more to reach every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pycomm.algorithms.registry import algorithm
from pycomm.arrays import View
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Request, Transport
from pycomm.transport.job import Job

SEGMENT_BYTES = 1 << 19
"""The largest message, in bytes: one segment travels while the one before it is reduced."""


def chunk_counts(count: int, ranks: int) -> tuple[int, ...]:
    """Cut `count` elements into one chunk per rank; the first ones may be longer by one."""
    return tuple((count + ranks - 1 - rank) // ranks for rank in range(ranks))


def chunk(view: View, job: Job, rank: int) -> np.ndarray:
    """Return the bytes of `rank`'s chunk of `view`, which holds sum(job.counts) elements."""
    start, stop = job.offsets[rank : rank + 2]
    return view.bytes[start * job.dtype.itemsize : stop * job.dtype.itemsize]


def segments(data: np.ndarray, segment_bytes: int) -> list[np.ndarray]:
    """Cut `data` into segments of `segment_bytes`, the last one perhaps shorter; none if empty."""
    return [data[start : start + segment_bytes] for start in range(0, data.size, segment_bytes)]


def reduce_then_gather(
    transport: Transport, job: Job, reduce: Callable[[Job], None], gather: Callable[[Job], None]
) -> None:
    """Do an all_reduce in two halves: a reduce_scatter into this rank's chunk, an all_gather."""
    whole = job.output
    job = replace(job, counts=chunk_counts(whole.count, transport.size))
    address = whole.address + job.offsets[transport.rank] * job.dtype.itemsize
    memory = chunk(whole, job, transport.rank)
    own = View(memory, job.dtype, job.counts[transport.rank], address)
    reduce(replace(job, kind="reduce_scatter", output=own))
    gather(replace(job, kind="all_gather", input=own))


@algorithm(
    "all_reduce",
    "ring",
    order="ring",
    steps=lambda ranks, nbytes: 2 * (ranks - 1),
    wire_bytes=lambda ranks, nbytes: 2 * (ranks - 1) * nbytes / ranks,
)
def all_reduce(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce in 2(n−1) steps, the ring of Patarasuk & Yuan (2009), which is bandwidth-optimal.

    1. n−1 steps: `reduce_scatter` leaves chunk c, reduced and rounded, on rank c.
    2. n−1 steps: `all_gather` passes the finished chunks round, so all ranks hold the same bits.

    Each rank sends 2(n−1)/n·S bytes of S; types narrower than their partial sums send these in
    the first half (float16, bfloat16: twice the bytes). Chunk c is summed in the order c+1, c+2,
    …, n−1, 0, …, c. The result is written from the last step of the first half on, when every
    rank has been heard of.

    Source: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", JPDC 69 (2009).
    """
    reduce_then_gather(
        transport,
        job,
        lambda half: reduce_scatter(transport, kernels, half, segment_bytes),
        lambda half: all_gather(transport, kernels, half, segment_bytes),
    )


@algorithm(
    "reduce_scatter",
    "ring",
    order="ring",
    steps=lambda ranks, nbytes: ranks - 1,
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes / ranks,
)
def reduce_scatter(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce chunk c onto rank c in n−1 steps, the first half of the ring (`all_reduce`).

    1. Rank r widens its part of chunk r−1 into a partial sum and sends it to rank r+1.
    2. In step s = 1…n−1 rank r receives the partial sum of chunk r−1−s from rank r−1, adds its
       own part and, but for the last step, sends it on to rank r+1.
    3. In the last step the chunk is r, and now whole: rank r rounds it, once, into its output.

    Chunk c is summed in the order c+1, c+2, …, n−1, 0, …, c. Each rank sends (n−1)/n·S bytes of S
    with even chunks; types narrower than their partial sums send these. A segment is sent on as
    soon as it is added to, while the next arrives. Chunks may be uneven, or empty.
    """
    ring = _Ring(transport, kernels, job, segment_bytes)
    for step in range(transport.size):
        ring.step(step)
    transport.wait(*ring.sent[0], *ring.sent[1])


class _Ring:
    """One rank's part in reduce_scatter: two partial sums, one sent while the other arrives."""

    def __init__(self, transport: Transport, kernels: Kernels, job: Job, segment_bytes: int):
        self.transport, self.kernels, self.job = transport, kernels, job
        self.op = job.op
        self.left = (transport.rank - 1) % transport.size
        self.right = (transport.rank + 1) % transport.size
        self.partial_size = job.dtype.partial.itemsize
        self.segment_count = max(1, segment_bytes // self.partial_size)
        self.partials = [np.empty(max(job.counts) * self.partial_size, np.uint8) for _ in range(2)]
        self.sent: list[list[Request]] = [[], []]

    def step(self, step: int) -> None:
        """Receive the partial sum of a chunk, add to it segment by segment, and send it on."""
        index = (self.transport.rank - 1 - step) % self.transport.size
        own = self._cut(chunk(self.job.input, self.job, index), self.job.dtype.itemsize)
        partial = self._free_partial(step % 2, self.job.counts[index])
        arrivals = [self.transport.irecv(s, self.left) for s in partial if step > 0]
        for number, (segment, x) in enumerate(zip(partial, own, strict=True)):
            self.transport.wait(*arrivals[number : number + 1])
            self._add(segment, x, first=step == 0)
            if step < self.transport.size - 1:
                self.sent[step % 2].append(self.transport.isend(segment, self.right))
            else:
                self._finish(segment, number)

    def _free_partial(self, side: int, count: int) -> list[np.ndarray]:
        """Return memory for a partial sum, which has been sent before it is used again."""
        self.transport.wait(*self.sent[side])
        self.sent[side] = []
        return self._cut(self.partials[side][: count * self.partial_size], self.partial_size)

    def _cut(self, data: np.ndarray, itemsize: int) -> list[np.ndarray]:
        return segments(data, self.segment_count * itemsize)

    def _add(self, partial: np.ndarray, x: np.ndarray, first: bool) -> None:
        if first:
            self.kernels.widen(x, partial, self.job.dtype, self.op)
        else:
            self.kernels.accumulate(partial, x, self.job.dtype, self.op)

    def _finish(self, partial: np.ndarray, number: int) -> None:
        output = self._cut(self.job.output.bytes, self.job.dtype.itemsize)
        self.kernels.finish(partial, output[number], self.job.dtype, self.op, self.transport.size)


@algorithm(
    "all_gather",
    "ring",
    steps=lambda ranks, nbytes: ranks - 1,
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes / ranks,
)
def all_gather(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Gather in n−1 steps, the second half of the ring (`all_reduce`).

    1. Rank r copies its own chunk into its output and sends it to rank r+1.
    2. In step s = 1…n−1 rank r receives chunk r−s from rank r−1 straight into its output and, but
       for the last step, sends it on to rank r+1, each segment as soon as it is there.

    Each rank sends (n−1)/n·S bytes of S, the whole output, with even chunks. Chunks may be
    uneven, or empty.
    """
    rank, size = transport.rank, transport.size
    left, right = (rank - 1) % size, (rank + 1) % size
    np.copyto(chunk(job.output, job, rank), job.input.bytes)
    chunks = [
        segments(chunk(job.output, job, (rank - step) % size), segment_bytes)
        for step in range(size)
    ]
    arrivals = [[transport.irecv(segment, left) for segment in data] for data in chunks[1:]]
    sent = [transport.isend(segment, right) for segment in chunks[0] if size > 1]
    for step in range(1, size):
        for segment, arrival in zip(chunks[step], arrivals[step - 1], strict=True):
            transport.wait(arrival)
            if step < size - 1:
                sent.append(transport.isend(segment, right))
    transport.wait(*sent)
