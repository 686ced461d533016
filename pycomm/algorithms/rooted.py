"""Rooted collectives between any ranks: reduce, gather and scatter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pycomm.algorithms import pairwise, ring
from pycomm.algorithms.registry import algorithm
from pycomm.algorithms.ring import SEGMENT_BYTES, chunk, chunk_counts
from pycomm.arrays import View, empty
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job


@algorithm(
    "reduce",
    "ring",
    order="ring",
    steps=lambda ranks, nbytes: ranks if ranks > 1 else 0,
    wire_bytes=lambda ranks, nbytes: nbytes if ranks > 1 else 0,
)
def reduce_ring(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce onto the root in n steps; the same bits as the ring's all_reduce.

    1. n−1 steps: the ring's `reduce_scatter` leaves chunk c, reduced and rounded, on rank c.
    2. One step: every rank sends its chunk to the root (`gather`).

    Each rank but the root sends S bytes of S, the root (n−1)/n·S; types narrower than their
    partial sums send these in the first half. The root's array is written from the last step of
    the first half on, when every rank has been heard of; the others' arrays are only read.
    """
    _reduce_then_gather(
        transport,
        kernels,
        job,
        lambda half: ring.reduce_scatter(transport, kernels, half, segment_bytes),
    )


@algorithm(
    "reduce",
    "pairwise",
    steps=lambda ranks, nbytes: ranks if ranks > 1 else 0,
    wire_bytes=lambda ranks, nbytes: nbytes if ranks > 1 else 0,
)
def reduce_pairwise(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce onto the root in n steps, in rank order; the same bits as all_reduce in that order.

    1. n−1 steps: the pairwise `reduce_scatter` leaves chunk c, reduced and rounded, on rank c.
    2. One step: every rank sends its chunk to the root (`gather`).

    Each rank but the root sends S bytes of S, the root (n−1)/n·S.

    Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication
    operations in MPICH", IJHPCA 19 (2005), reduce as a reduce-scatter and a gather.
    """
    _reduce_then_gather(
        transport,
        kernels,
        job,
        lambda half: pairwise.reduce_scatter(transport, kernels, half, segment_bytes),
    )


def _reduce_then_gather(
    transport: Transport, kernels: Kernels, job: Job, reduce_scatter: Callable[[Job], None]
) -> None:
    counts = chunk_counts(job.input.count, transport.size)
    job = replace(job, counts=counts)
    own = _own_chunk(transport, job)
    reduce_scatter(replace(job, kind="reduce_scatter", output=own))
    gather(transport, kernels, replace(job, kind="gather", input=own))


def _own_chunk(transport: Transport, job: Job) -> View:
    """Return memory for this rank's chunk of the result: on the root, in the result itself."""
    rank = transport.rank
    if rank != job.root:
        return empty((job.counts[rank],), job.dtype, False)
    address = job.output.address + job.offsets[rank] * job.dtype.itemsize
    return View(chunk(job.output, job, rank), job.dtype, job.counts[rank], address)


@algorithm(
    "gather",
    "linear",
    steps=lambda ranks, nbytes: int(ranks > 1),
    wire_bytes=lambda ranks, nbytes: nbytes / ranks if ranks > 1 else 0,
)
def gather(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Gather onto the root in 1 step.

    1. Every rank but the root sends its chunk, and the root receives each where it belongs.

    The others send S/n bytes of S; the root receives (n−1)/n·S, the least there is. Chunks may be
    uneven, or empty.
    """
    if transport.rank != job.root:
        if job.input.count:
            transport.wait(transport.isend(job.input.bytes, job.root))
        return
    requests = [
        transport.irecv(chunk(job.output, job, rank), rank)
        for rank in range(transport.size)
        if rank != job.root and job.counts[rank]
    ]
    np.copyto(chunk(job.output, job, job.root), job.input.bytes)
    transport.wait(*requests)


@algorithm(
    "scatter",
    "linear",
    steps=lambda ranks, nbytes: ranks - 1,
    wire_bytes=lambda ranks, nbytes: (ranks - 1) * nbytes / ranks,
)
def scatter(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Scatter from the root in n−1 steps, of which none waits for another.

    1. The root sends every other rank its chunk, the next rank's first.

    The root sends (n−1)/n·S bytes of S, the least there is. Chunks may be uneven, or empty.
    """
    size = transport.size
    if transport.rank != job.root:
        if job.output.count:
            transport.wait(transport.irecv(job.output.bytes, job.root))
        return
    peers = [(job.root + distance) % size for distance in range(1, size)]
    requests = [
        transport.isend(chunk(job.input, job, rank), rank) for rank in peers if job.counts[rank]
    ]
    np.copyto(job.output.bytes, chunk(job.input, job, job.root))
    transport.wait(*requests)
