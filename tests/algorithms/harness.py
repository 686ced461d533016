"""Run an algorithm on the threads transport, over arrays, as the communicator would."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np

from pycomm.algorithms.registry import Algorithm, algorithms
from pycomm.arrays import NOTHING, resolve_dtype, view
from pycomm.kernels.cpu import CpuKernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job
from pycomm.transport.threads import ThreadTransport
from pycomm.types import ReduceOp

KERNELS = CpuKernels()


def portable(kind: str) -> list[Algorithm]:
    """Return the algorithms that run on a transport without fused collectives, on any ranks."""
    return [a for a in algorithms(kind) if a.supports(ThreadTransport)]


def layered(kind: str) -> list[Algorithm]:
    """Return the algorithms for several hosts with several ranks each."""
    return [a for a in algorithms(kind) if a.by_host]


def options(algorithm: Algorithm, segment_bytes: int) -> dict[str, int]:
    """Return the keyword that sets the segment size, for an algorithm that has segments."""
    known = "segment_bytes" in inspect.signature(algorithm.run).parameters
    return {"segment_bytes": segment_bytes} if known else {}


def name(algorithm: object) -> str:
    """Return what a test's parameter is called."""
    return algorithm.name if isinstance(algorithm, Algorithm) else repr(algorithm)


def all_reduce(
    run: Callable, transport: Transport, x: np.ndarray, op: ReduceOp, **options: int
) -> np.ndarray:
    """Return the reduction of every rank's `x`, which stays as it is."""
    out = x.copy()
    memory = view(out, result=True)
    run(transport, KERNELS, Job("all_reduce", memory.dtype, memory, memory, op=op), **options)
    return out


def reduce_scatter(
    run: Callable,
    transport: Transport,
    x: np.ndarray,
    counts: Sequence[int],
    op: ReduceOp,
    **options: int,
) -> np.ndarray:
    """Return this rank's chunk of the reduction of every rank's `x`."""
    out = np.empty(counts[transport.rank], x.dtype)
    dtype = resolve_dtype(x.dtype)
    job = Job("reduce_scatter", dtype, view(x), view(out, result=True), tuple(counts), op)
    run(transport, KERNELS, job, **options)
    return out


def all_gather(
    run: Callable, transport: Transport, x: np.ndarray, counts: Sequence[int], **options: int
) -> np.ndarray:
    """Return the chunks of all ranks, one after another; `x` is this rank's."""
    out = np.empty(sum(counts), x.dtype)
    dtype = resolve_dtype(x.dtype)
    job = Job("all_gather", dtype, view(x), view(out, result=True), tuple(counts))
    run(transport, KERNELS, job, **options)
    return out


def broadcast(
    run: Callable, transport: Transport, x: np.ndarray, root: int, **options: int
) -> np.ndarray:
    """Return the root's `x`; elsewhere it gives only the shape."""
    out = x.copy() if transport.rank == root else np.full_like(x, 1)
    memory = view(out, result=True)
    run(transport, KERNELS, Job("broadcast", memory.dtype, None, memory, root=root), **options)
    return out


def reduce(
    run: Callable, transport: Transport, x: np.ndarray, root: int, op: ReduceOp, **options: int
) -> np.ndarray:
    """Return this rank's array afterwards: the reduction on the root, else a copy of `x`."""
    out = x.copy()
    memory = view(out, result=True)
    result = memory if transport.rank == root else NOTHING
    job = Job("reduce", memory.dtype, memory, result, op=op, root=root)
    run(transport, KERNELS, job, **options)
    return out


def gather(
    run: Callable,
    transport: Transport,
    x: np.ndarray,
    counts: Sequence[int],
    root: int,
    **options: int,
) -> np.ndarray:
    """Return the chunks of all ranks, one after another, on the root; elsewhere untouched ones."""
    out = np.full(sum(counts), 1, x.dtype)
    memory = view(out, result=True) if transport.rank == root else NOTHING
    job = Job("gather", resolve_dtype(x.dtype), view(x), memory, tuple(counts), root=root)
    run(transport, KERNELS, job, **options)
    return out


def scatter(
    run: Callable,
    transport: Transport,
    x: np.ndarray,
    counts: Sequence[int],
    root: int,
    **options: int,
) -> np.ndarray:
    """Return this rank's chunk of the root's `x`; elsewhere it gives only the dtype."""
    out = np.empty(counts[transport.rank], x.dtype)
    source = view(x) if transport.rank == root else NOTHING
    memory = view(out, result=True)
    run(
        transport,
        KERNELS,
        Job("scatter", memory.dtype, source, memory, tuple(counts), root=root),
        **options,
    )
    return out


def all_to_all(
    run: Callable,
    transport: Transport,
    x: np.ndarray,
    sent: Sequence[Sequence[int]],
    **options: int,
) -> np.ndarray:
    """Return the chunks for this rank, one after another; sent[s][r] elements go from s to r."""
    rank = transport.rank
    out = np.empty(sum(counts[rank] for counts in sent), x.dtype)
    table = tuple(tuple(counts) for counts in sent)
    even = {count for counts in table for count in counts}
    dtype, memory = resolve_dtype(x.dtype), view(out, result=True)
    job = Job(
        "all_to_all", dtype, view(x), memory, table[rank], sent=() if len(even) == 1 else table
    )
    run(transport, KERNELS, job, **options)
    return out


def barrier(run: Callable, transport: Transport) -> None:
    """Return when every rank has called it."""
    run(transport, KERNELS, Job("barrier", resolve_dtype("uint8")))
