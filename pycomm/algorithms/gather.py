"""Gather: everything goes to everybody as it is, and each rank adds it all; for small data."""

from __future__ import annotations

import numpy as np

from pycomm.algorithms import recursive
from pycomm.algorithms.recursive import rounds
from pycomm.algorithms.registry import algorithm
from pycomm.algorithms.ring import chunk_counts
from pycomm.arrays import View, view
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job


@algorithm(
    "all_reduce",
    "gather",
    steps=lambda ranks, nbytes: rounds(ranks),
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes,
)
def all_reduce(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Reduce in rank order in ⌈log₂ n⌉ steps; the same bits as `pairwise`.

    1. `gather_rows`: Bruck's all_gather brings every rank's array to every rank.
    2. Each rank adds all of them in the order 0, 1, …, n−1 and rounds once.

    Each rank sends (n−1)·S bytes of S, of every type.
    """
    rows = gather_rows(transport, kernels, job.input)
    kernels.reduce(list(rows), job.output.bytes, job.dtype, job.op)


@algorithm(
    "all_reduce",
    "ring_gather",
    order="ring",
    steps=lambda ranks, nbytes: rounds(ranks),
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes,
)
def all_reduce_in_ring_order(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Reduce in the ring's order in ⌈log₂ n⌉ steps; the same bits as `ring`.

    1. `gather_rows`: Bruck's all_gather brings every rank's array to every rank.
    2. Each rank adds chunk c of all of them in the order c+1, c+2, …, n−1, 0, …, c, as the ring
       does, and rounds once.

    Each rank sends (n−1)·S bytes of S, of every type.
    """
    size, item = transport.size, job.dtype.itemsize
    rows = gather_rows(transport, kernels, job.input)
    stop = 0
    for c, count in enumerate(chunk_counts(job.output.count, size)):
        start, stop = stop, stop + count * item
        turned = [rows[(c + 1 + i) % size, start:stop] for i in range(size)]
        kernels.reduce(turned, job.output.bytes[start:stop], job.dtype, job.op)


def gather_rows(transport: Transport, kernels: Kernels, x: View) -> np.ndarray:
    """Return the bytes of every rank's `x`, one row a rank: (size, x.nbytes)."""
    rows = np.empty((transport.size, x.nbytes), np.uint8)
    counts = (x.count,) * transport.size
    job = Job("all_gather", x.dtype, x, view(rows), counts)
    recursive.all_gather(transport, kernels, job)
    return rows
