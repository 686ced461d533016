"""Hierarchical: first within each host, then between hosts, where every rank carries its share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pycomm.algorithms import gather, pairwise, recursive, ring
from pycomm.algorithms.recursive import rounds
from pycomm.algorithms.registry import Run, algorithm
from pycomm.algorithms.ring import SEGMENT_BYTES, chunk_counts
from pycomm.arrays import View, empty
from pycomm.errors import ArgumentError
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.types import SUM, ReduceOp

NEEDS = "several hosts with the same number of ranks on each, more than one"

BETWEEN_HOSTS: dict[str, Any] = {
    "supports": lambda transport: transport.across is not None,
    "needs": NEEDS,
    "by_host": True,
}
"""What is the same of all algorithms in which every rank does its share between hosts."""


@algorithm(
    "all_reduce",
    "hierarchical",
    order="hierarchical",
    steps=lambda ranks, nbytes, hosts: 2 * (hosts - 1) + 2,
    wire_bytes=lambda ranks, nbytes, hosts: 2 * (hosts - 1) * nbytes / ranks,
    opens=True,
    **BETWEEN_HOSTS,
)
def all_reduce(
    transport: Transport, kernels: Kernels, job: Job, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Reduce on h hosts with m ranks each in 2(h−1) steps between hosts, all ranks at once.

    1. On every host a reduce_scatter leaves rank l with chunk l, of m, of the host's sum.
    2. `pairwise.reduce_scatter` among rank l and its h−1 counterparts adds the hosts' sums of
       chunk l, a piece on each, in the order of the hosts; the piece is rounded, once.
    3. `ring.all_gather` among the counterparts collects the pieces of chunk l.
    4. On every host an all_gather collects the chunks.

    Each rank sends 2(h−1)/(h·m)·S bytes of S to other hosts, so a host 2(h−1)/h·S; for types
    narrower than their partial sums, which the sums of hosts are, step 2 sends those. Every element
    is the sum over the hosts of the host's sum in rank order. The result is written from the end of
    step 2 on, when every host has been heard of.

    Source: M. Cho, U. Finkler, M. Serrano, D. Kung, H. Hunter, "BlueConnect: decomposing all-reduce
    for deep learning on heterogeneous network hierarchy", IBM J. R&D 63 (2019), with two levels.
    """
    local, across = levels(transport)
    counts = chunk_counts(job.output.count, local.size)
    mine = part(job.output, counts, local.rank)
    sums = _host_sums(local, kernels, job, counts)
    _add_hosts(across, kernels, replace(job, output=mine), sums, transport.size, segment_bytes)
    whole = replace(job, kind="all_gather", input=mine, counts=counts)
    on_host(local, kernels, whole)


@algorithm(
    "all_reduce",
    "hierarchical_gather",
    order="hierarchical",
    steps=lambda ranks, nbytes, hosts: rounds(hosts) + 1,
    wire_bytes=lambda ranks, nbytes, hosts: (hosts - 1) * nbytes,
    opens=True,
    **BETWEEN_HOSTS,
)
def small_all_reduce(transport: Transport, kernels: Kernels, job: Job) -> None:
    """Reduce on h hosts in ⌈log₂ h⌉ steps between hosts; the same bits as `hierarchical`.

    1. On every host an all_reduce gives each rank the host's sum.
    2. `gather_rows` among counterparts brings the sums of all hosts to every rank.
    3. Each rank adds them in the order of the hosts and rounds once.

    Each rank sends (h−1)·S bytes of S to other hosts, as partial sums.
    """
    local, across = levels(transport)
    sums, op = as_partials(kernels, job, copy=True)
    host = Job("all_reduce", sums.dtype, sums, sums, op=op, fingerprint=job.fingerprint)
    on_host(local, kernels, host)
    rows = gather.gather_rows(across, kernels, sums)
    kernels.reduce(list(rows), sums.bytes, sums.dtype, plain(op))
    kernels.finish(sums.bytes, job.output.bytes, job.dtype, job.op, transport.size)


_BY_MESSAGES: dict[str, Run] = {
    "all_reduce": gather.all_reduce,
    "all_gather": ring.all_gather,
    "broadcast": recursive.broadcast,
    "reduce_scatter": pairwise.reduce_scatter,
}


def on_host(local: Transport, kernels: Kernels, job: Job) -> None:
    """Do `job` among the ranks of a host: in shared memory, if they have some."""
    if job.kind in local.fused:
        local.run(job)
    else:
        _BY_MESSAGES[job.kind](local, kernels, job)


def levels(transport: Transport) -> tuple[Transport, Transport]:
    """Return the ranks on this one's host, and its counterparts.

    Raises:
        ArgumentError: there are none.
    """
    if transport.local is None or transport.across is None:
        raise ArgumentError(f"rank {transport.rank} of {transport.size}: this needs {NEEDS}")
    return transport.local, transport.across


def part(whole: View, counts: tuple[int, ...], number: int) -> View:
    """Return part `number` of `whole`, whose parts have `counts` elements."""
    start, item = sum(counts[:number]), whole.dtype.itemsize
    stop = start + counts[number]
    memory = whole.bytes[start * item : stop * item]
    return View(memory, whole.dtype, counts[number], whole.address + start * item)


def plain(op: ReduceOp) -> ReduceOp:
    """Return the operation that adds partial results: no factor any more, and no division yet."""
    return SUM if op.name in ("avg", "premul_sum") else op


def as_partials(kernels: Kernels, job: Job, copy: bool = False) -> tuple[View, ReduceOp]:
    """Return the input in the type of partial sums, with the operation that adds it to others'."""
    partial = job.dtype.partial
    if partial == job.dtype and not copy:
        return job.input, job.op if job.op.name == "premul_sum" else plain(job.op)
    wide = empty((job.input.count,), partial, as_tensor=False)
    kernels.widen(job.input.bytes, wide.bytes, job.dtype, job.op)
    return wide, plain(job.op)


def _host_sums(local: Transport, kernels: Kernels, job: Job, counts: tuple[int, ...]) -> View:
    """Return this rank's chunk of the sum over its host, as partial sums."""
    source, op = as_partials(kernels, job)
    sums = empty((counts[local.rank],), source.dtype, as_tensor=False)
    within = Job("reduce_scatter", source.dtype, source, sums, counts, op)
    within.fingerprint = job.fingerprint
    on_host(local, kernels, within)
    return sums


def _add_hosts(
    across: Transport, kernels: Kernels, job: Job, sums: View, inputs: int, segment_bytes: int
) -> None:
    """Add every host's `sums`, of `inputs` ranks in all, and round the result into job.output."""
    counts = chunk_counts(sums.count, across.size)
    piece, rounded = (part(v, counts, across.rank) for v in (sums, job.output))
    added = Job("reduce_scatter", sums.dtype, sums, piece, counts, plain(job.op))
    pairwise.reduce_scatter(across, kernels, added, segment_bytes)
    kernels.finish(piece.bytes, rounded.bytes, job.dtype, job.op, inputs)
    chunk = replace(job, kind="all_gather", input=rounded, counts=counts)
    ring.all_gather(across, kernels, chunk, segment_bytes)
