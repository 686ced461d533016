"""Pairwise exchange: raw chunks go straight to their owner, who adds them in rank order."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from pycomm.algorithms import ring
from pycomm.algorithms.registry import algorithm
from pycomm.algorithms.ring import SEGMENT_BYTES, chunk, reduce_then_gather, segments
from pycomm.arrays import View
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Request, Transport
from pycomm.transport.job import Job


@algorithm(
    "all_reduce",
    "pairwise",
    steps=lambda ranks, nbytes: 2 * (ranks - 1),
    wire_bytes=lambda ranks, nbytes: 2 * (ranks - 1) * nbytes / ranks,
)
def all_reduce(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce in rank order in 2(n−1) steps; the same bits as one process that adds 0, 1, …, n−1.

    1. n−1 steps: `reduce_scatter` leaves chunk c, reduced and rounded, on rank c.
    2. n−1 steps: the ring's all_gather passes the finished chunks round.

    Each rank sends 2(n−1)/n·S bytes of S, of every type. The result is written once a segment of
    every rank has arrived.
    """
    reduce_then_gather(
        transport,
        job,
        lambda half: reduce_scatter(transport, kernels, half, segment_bytes),
        lambda half: ring.all_gather(transport, kernels, half, segment_bytes),
    )


@algorithm(
    "reduce_scatter",
    "pairwise",
    steps=lambda ranks, nbytes: ranks - 1,
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes / ranks,
)
def reduce_scatter(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce chunk c onto rank c in n−1 steps, in rank order.

    1. In step s = 1…n−1 rank r sends its part of chunk r+s, as it is, to rank r+s, and receives
       rank r−s's part of chunk r.
    2. Rank r adds the n parts of its chunk in the order 0, 1, …, n−1 and rounds once.

    Each rank sends (n−1)/n·S bytes of S with even chunks. This is done for one segment of every
    chunk at a time: the exchange of the next is under way while one is added. Chunks may be
    uneven, or empty.

    Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication
    operations in MPICH", IJHPCA 19 (2005), reduce-scatter by pairwise exchange.
    """
    exchange = _Exchange(transport, job, segment_bytes)
    output = segments(job.output.bytes, exchange.segment_bytes)
    ahead = exchange.post(0)
    for number in range(exchange.rounds):
        now, ahead = ahead, exchange.post(number + 1)
        transport.wait(*now)
        for out in output[number : number + 1]:
            kernels.reduce(exchange.parts(number), out, job.dtype, job.op)


@algorithm(
    "all_to_all",
    "pairwise",
    steps=lambda ranks, nbytes: ranks - 1,
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes / ranks,
)
def all_to_all(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Send every rank its chunk in n−1 steps.

    1. Rank r copies the chunk for itself.
    2. In step s = 1…n−1 it sends chunk r+s to rank r+s and receives from rank r−s: in every step
       each rank sends to one and receives from one other.

    Each rank sends (n−1)/n·S bytes of S with even chunks. A step begins before the last one is
    complete. Chunks may be uneven, or empty.

    Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication
    operations in MPICH", IJHPCA 19 (2005), all-to-all for long messages.
    """
    rank, size = transport.rank, transport.size
    outgoing = _cut(job.input, job.counts, job.dtype.itemsize)
    incoming = _cut(job.output, job.received(rank), job.dtype.itemsize)
    np.copyto(incoming[rank], outgoing[rank])
    under_way: list[Request] = []
    for step in range(1, size):
        to, source = (rank + step) % size, (rank - step) % size
        now = [transport.irecv(data, source) for data in (incoming[source],) if data.size]
        now += [transport.isend(data, to) for data in (outgoing[to],) if data.size]
        transport.wait(*under_way)
        under_way = now
    transport.wait(*under_way)


def _cut(view: View, counts: tuple[int, ...], itemsize: int) -> list[np.ndarray]:
    edges = [edge * itemsize for edge in accumulate(counts, initial=0)]
    return [view.bytes[start:stop] for start, stop in zip(edges, edges[1:])]


class _Exchange:
    """Segment `number` of every chunk on its way; two sets of buffers, used in turn."""

    def __init__(self, transport: Transport, job: Job, segment_bytes: int):
        self.transport = transport
        itemsize = job.dtype.itemsize
        self.segment_bytes = max(1, segment_bytes // itemsize) * itemsize
        self.chunks = [
            segments(chunk(job.input, job, rank), self.segment_bytes)
            for rank in range(transport.size)
        ]
        self.rounds = max(map(len, self.chunks))
        self.own = self.chunks[transport.rank]
        longest = max((segment.size for segment in self.own), default=0)
        self.arrived = np.empty((2, transport.size, longest), np.uint8)

    def post(self, number: int) -> list[Request]:
        """Start to exchange segment `number` with every peer, nearest first; none past the end."""
        requests = []
        rank, size = self.transport.rank, self.transport.size
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            for segment in self.chunks[to][number : number + 1]:
                requests.append(self.transport.isend(segment, to))
            for _ in self.own[number : number + 1]:
                requests.append(self.transport.irecv(self._part(number, source), source))
        return requests

    def parts(self, number: int) -> list[np.ndarray]:
        """Return segment `number` of this rank's chunk as each rank has it, in rank order."""
        return [self._part(number, rank) for rank in range(self.transport.size)]

    def _part(self, number: int, rank: int) -> np.ndarray:
        own = self.own[number]
        return own if rank == self.transport.rank else self.arrived[number % 2, rank, : own.size]
