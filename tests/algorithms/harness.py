"""Run an algorithm on the threads transport, over arrays, as the communicator would."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np

from pycomm.algorithms.registry import Algorithm, algorithms
from pycomm.arrays import resolve_dtype, view
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


def barrier(run: Callable, transport: Transport) -> None:
    """Return when every rank has called it."""
    run(transport, KERNELS, Job("barrier", resolve_dtype("uint8")))
