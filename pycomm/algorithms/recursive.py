"""Trees and doubling: collectives in log₂ n steps, for small data and rooted operations."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from pycomm.algorithms.registry import algorithm
from pycomm.algorithms.ring import SEGMENT_BYTES, chunk, segments
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job


def rounds(ranks: int) -> int:
    """Return ⌈log₂ ranks⌉: how often something must double to reach all ranks."""
    return (ranks - 1).bit_length()


@algorithm(
    "broadcast",
    "binomial",
    steps=lambda ranks, nbytes: rounds(ranks),
    wire_bytes=lambda ranks, nbytes: rounds(ranks) * nbytes,
)
def broadcast(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Broadcast in ⌈log₂ n⌉ steps down a binomial tree; v is a rank's distance from the root.

    1. Every v > 0 receives from v less its lowest set bit.
    2. It sends on to v + 2^k for the k below that bit, the farthest first; the root for all k.

    The root sends ⌈log₂ n⌉·S bytes. A segment is sent on as soon as it is there.

    Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication
    operations in MPICH", IJHPCA 19 (2005), on broadcast.
    """
    parents, children = _binomial(transport.rank, transport.size, job.root)
    data = segments(job.output.bytes, segment_bytes)
    arrivals = [[transport.irecv(segment, parent) for parent in parents] for segment in data]
    sent = []
    for segment, arrival in zip(data, arrivals, strict=True):
        transport.wait(*arrival)
        sent += [transport.isend(segment, child) for child in children]
    transport.wait(*sent)


def _binomial(rank: int, ranks: int, root: int) -> tuple[list[int], list[int]]:
    """Return the parent (none for the root) and the children of `rank` in the tree."""
    distance = (rank - root) % ranks
    below = distance & -distance or 1 << rounds(ranks)
    parents = [(rank - below) % ranks] if distance else []
    steps = [1 << k for k in reversed(range(below.bit_length() - 1))]
    return parents, [(rank + step) % ranks for step in steps if distance + step < ranks]


@algorithm(
    "all_gather",
    "bruck",
    steps=lambda ranks, nbytes: rounds(ranks),
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes / ranks,
)
def all_gather(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Gather in ⌈log₂ n⌉ steps, for chunks so small that only the number of steps counts.

    1. Rank r puts its chunk first into a buffer that shall hold chunks r, r+1, …, r−1.
    2. In step k it has 2^k chunks, sends the first min(2^k, n−2^k) of them to rank r−2^k and
       receives as many, which are the next ones, from rank r+2^k.
    3. It copies the buffer, turned by r chunks, into its output.

    Each rank sends (n−1)/n·S bytes of S, the whole output, with even chunks. Chunks may be uneven,
    or empty.

    Source: J. Bruck et al., "Efficient algorithms for all-to-all communications in multiport
    message-passing systems", IEEE TPDS 8 (1997), the concatenation.
    """
    rank, size = transport.rank, transport.size
    chunks = [chunk(job.output, job, (rank + distance) % size) for distance in range(size)]
    starts = [0, *accumulate(data.size for data in chunks)]
    turned = np.empty(starts[-1], np.uint8)
    turned[: starts[1]] = job.input.bytes
    for have in (1 << k for k in range(rounds(size))):
        more = min(have, size - have)
        arrival = transport.irecv(turned[starts[have] : starts[have + more]], (rank + have) % size)
        transport.wait(arrival, transport.isend(turned[: starts[more]], (rank - have) % size))
    for distance, data in enumerate(chunks):
        np.copyto(data, turned[starts[distance] : starts[distance + 1]])


@algorithm(
    "barrier",
    "dissemination",
    steps=lambda ranks, nbytes: rounds(ranks),
    wire_bytes=lambda ranks, nbytes: rounds(ranks),
)
def barrier(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Meet in ⌈log₂ n⌉ steps: after step k a rank has heard of the 2^(k+1) ranks up to itself.

    1. In step k rank r sends a byte to rank r+2^k and receives one from rank r−2^k.

    Each rank sends ⌈log₂ n⌉ bytes.

    Source: D. Hensgen, R. Finkel, U. Manber, "Two algorithms for barrier synchronization",
    IJPP 17 (1988).
    """
    rank, size = transport.rank, transport.size
    token, heard = np.zeros(1, np.uint8), np.empty(1, np.uint8)
    for distance in (1 << k for k in range(rounds(size))):
        arrival = transport.irecv(heard, (rank - distance) % size)
        transport.wait(arrival, transport.isend(token, (rank + distance) % size))
