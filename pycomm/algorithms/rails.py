"""Between hosts by way of counterparts: reduce_scatter, all_gather and broadcast.

Every rank of a host exchanges its own part with its counterparts, its rail, while the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pycomm.algorithms import pairwise, recursive, ring
from pycomm.algorithms.hierarchical import (
    BETWEEN_HOSTS,
    as_partials,
    levels,
    on_host,
    part,
    plain,
)
from pycomm.algorithms.recursive import rounds
from pycomm.algorithms.registry import algorithm
from pycomm.algorithms.ring import SEGMENT_BYTES, chunk_counts
from pycomm.arrays import View, empty
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job


@algorithm(
    "reduce_scatter",
    "hierarchical",
    order="hierarchical",
    steps=lambda ranks, nbytes, hosts: 2 * hosts - 1,
    wire_bytes=lambda ranks, nbytes, hosts: (hosts - 1) * nbytes / ranks,
    opens=True,
    **BETWEEN_HOSTS,
)
def reduce_scatter(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce on h hosts in h−1 steps between hosts; the same bits as the all_reduce.

    1. On every host h reduce_scatters, one for the chunks of each host's ranks, leave rank l with
       the host's sums of the chunks of its rail.
    2. `pairwise.reduce_scatter` along the rail adds the hosts' sums of the rank's own chunk, in the
       order of the hosts; the chunk is rounded, once.

    Each rank sends (h−1)/(h·m)·S bytes of S to other hosts with even chunks and m ranks on each, so
    a host (h−1)/h·S, as partial sums. Chunks may be uneven, or empty. The result is written in step
    2, when every host has been heard of.
    """
    local, across = levels(transport)
    source, op = as_partials(kernels, job)
    rail = _rail(transport, job.counts)
    sums = empty((sum(rail),), source.dtype, as_tensor=False)
    for host, ranks in enumerate(transport.ranks_by_host):
        chunks, counts = _together(source, job.counts, ranks), _of(job.counts, ranks)
        within = Job("reduce_scatter", source.dtype, chunks, part(sums, rail, host), counts, op)
        within.fingerprint = job.fingerprint
        on_host(local, kernels, within)
    own = part(sums, rail, across.rank)
    added = Job("reduce_scatter", sums.dtype, sums, own, rail, plain(job.op))
    pairwise.reduce_scatter(across, kernels, added, segment_bytes)
    kernels.finish(own.bytes, job.output.bytes, job.dtype, job.op, transport.size)


@algorithm(
    "all_gather",
    "hierarchical",
    steps=lambda ranks, nbytes, hosts: 2 * hosts - 1,
    wire_bytes=lambda ranks, nbytes, hosts: (hosts - 1) * nbytes / ranks,
    **BETWEEN_HOSTS,
)
def all_gather(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Gather on h hosts in h−1 steps between hosts.

    1. `ring.all_gather` along the rail collects its h chunks in memory of the rank's own.
    2. On every host h all_gathers, one for the chunks of each host's ranks, collect those of all
       rails.

    Each rank sends (h−1)/(h·m)·S bytes of S to other hosts with even chunks and m ranks on each, so
    a host (h−1)/h·S. Chunks may be uneven, or empty.
    """
    local, across = levels(transport)
    rail = _rail(transport, job.counts)
    mine = empty((sum(rail),), job.dtype, as_tensor=False)
    ring.all_gather(across, kernels, replace(job, output=mine, counts=rail), segment_bytes)
    for host, ranks in enumerate(transport.ranks_by_host):
        target = _room(job.output, job.counts, ranks)
        counts = _of(job.counts, ranks)
        within = replace(job, input=part(mine, rail, host), output=target, counts=counts)
        on_host(local, kernels, within)
        _spread(target, job.output, job.counts, ranks)


@algorithm(
    "broadcast",
    "hierarchical",
    steps=lambda ranks, nbytes, hosts: rounds(hosts) + 2,
    wire_bytes=lambda ranks, nbytes, hosts: rounds(hosts) * nbytes * hosts / ranks,
    **BETWEEN_HOSTS,
)
def broadcast(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Broadcast on h hosts in ⌈log₂ h⌉ steps between hosts.

    1. A broadcast on the root's host.
    2. Along each rail, `recursive.broadcast` sends one of m chunks to the other hosts, where m is
       the number of ranks on each.
    3. On every other host an all_gather collects the chunks.

    Each rank of the root's host sends ⌈log₂ h⌉·S/m bytes of S to other hosts, so that host
    ⌈log₂ h⌉·S.
    """
    local, across = levels(transport)
    root_host = next(h for h, ranks in enumerate(transport.ranks_by_host) if job.root in ranks)
    at_home = across.rank == root_host
    if at_home:
        root = transport.ranks_by_host[root_host].index(job.root)
        on_host(local, kernels, replace(job, root=root))
    counts = chunk_counts(job.output.count, local.size)
    mine = part(job.output, counts, local.rank)
    recursive.broadcast(across, kernels, replace(job, output=mine, root=root_host), segment_bytes)
    if not at_home:
        on_host(local, kernels, replace(job, kind="all_gather", input=mine, counts=counts))


def _of(counts: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    return tuple(counts[rank] for rank in ranks)


def _rail(transport: Transport, counts: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of elements of this rank's and its counterparts' chunks, by host."""
    local, _ = levels(transport)
    return _of(counts, [ranks[local.rank] for ranks in transport.ranks_by_host])


def _room(whole: View, counts: tuple[int, ...], ranks: Sequence[int]) -> View:
    """Return memory for the chunks of `ranks`, one after another: that of `whole`, if they are."""
    number = sum(_of(counts, ranks))
    if ranks[-1] - ranks[0] >= len(ranks):
        return empty((number,), whole.dtype, as_tensor=False)
    start, item = sum(counts[: ranks[0]]), whole.dtype.itemsize
    memory = whole.bytes[start * item : (start + number) * item]
    return View(memory, whole.dtype, number, whole.address + start * item)


def _together(whole: View, counts: tuple[int, ...], ranks: Sequence[int]) -> View:
    """Return the chunks of `ranks`, one after another; copied only if they are not so already."""
    room = _room(whole, counts, ranks)
    if not np.may_share_memory(room.bytes, whole.bytes):
        np.concatenate([part(whole, counts, rank).bytes for rank in ranks], out=room.bytes)
    return room


def _spread(chunks: View, whole: View, counts: tuple[int, ...], ranks: Sequence[int]) -> None:
    """Copy the chunks of `ranks` where they belong in `whole`, unless they are there."""
    if not np.may_share_memory(chunks.bytes, whole.bytes):
        for number, rank in enumerate(ranks):
            source = part(chunks, _of(counts, ranks), number)
            np.copyto(part(whole, counts, rank).bytes, source.bytes)
