"""Measures what a step of communication costs, between hosts, within one, and in its memory."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

import numpy as np

from pycomm.algorithms.registry import find
from pycomm.communicator import Communicator
from pycomm.costs import Link
from pycomm.transport.base import Transport

SIZES = (8, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22)
_BATCHES = 7

Advance = Callable[[], None]
"""Called after each of `steps(comm)` parts of the measurement, on every rank."""


def steps(comm: Communicator) -> int:
    """Return of how many parts `measure` consists; collective."""
    return len(SIZES) * ((comm.size > 1) + _shares_memory(comm))


def measure(comm: Communicator, advance: Advance) -> dict[str, Link]:
    """Measure the links that the ranks of `comm` have; collective.

    Returns:
        Links by their names in Costs: "hosts", or "messages" if all ranks are on one host, as
        messages that one rank of each host sends to the next, and receives from the one before, all
        at once; and "memory" if the host of this rank has several, as its all_reduce.
    """
    links = {}
    if comm.size > 1:
        names = comm.all_gather_object(socket.gethostname())
        ring = [names.index(name) for name in dict.fromkeys(names)]
        between = f"between {len(ring)} hosts" if len(ring) > 1 else "within one host"
        fitted = _messages(comm, ring if len(ring) > 1 else [0, 1], advance)
        name = "hosts" if len(ring) > 1 else "messages"
        links[name] = _link(comm, fitted, f"{between}, from {names[0]} on")
    if _shares_memory(comm):
        fitted = _memory(comm.local, advance)
        links["memory"] = _link(comm, fitted, f"on {comm.local.size} ranks of {names[comm.rank]}")
    return links


def fit(nbytes: Sequence[float], times_us: Sequence[float]) -> tuple[float, float]:
    """Fit latency_us + bytes / bandwidth_gbps to times, with the least relative errors.

    Returns:
        latency_us and bandwidth_gbps, both above 0: at most the least time, and at least the
        bandwidth that the largest size would have without latency.
    """
    times, sent = np.array(times_us), np.array(nbytes, float)
    rows = np.stack([1 / times, sent / times], 1)
    latency, per_byte = np.linalg.lstsq(rows, np.ones(len(times)), rcond=None)[0]
    if latency <= 0:
        latency = times.min()
    if per_byte <= 0:
        per_byte = times[-1] / sent[-1]
    return float(latency), float(1e-3 / per_byte)


def _link(comm: Communicator, fitted: tuple[float, float], where: str) -> Link:
    library = comm.world.wire.library
    return Link(*fitted, f"measured {date.today().isoformat()} {where}, {library}")


def _shares_memory(comm: Communicator) -> bool:
    return comm.local.size > 1 and "all_reduce" in comm.local.transport.fused


def _messages(comm: Communicator, ring: Sequence[int], advance: Advance) -> tuple[float, float]:
    times = []
    for nbytes in SIZES:
        if comm.rank in ring:
            exchange = _exchange(comm.transport, ring, nbytes)
            times.append(_time_us(exchange, nbytes))
        comm.barrier()
        advance()
    return fit(SIZES, times) if times else (1.0, 1.0)


def _exchange(transport: Transport, ring: Sequence[int], nbytes: int) -> Callable[[], None]:
    place = ring.index(transport.rank)
    after, before = ring[(place + 1) % len(ring)], ring[place - 1]
    data, room = np.zeros(nbytes, np.uint8), np.empty(nbytes, np.uint8)

    def exchange() -> None:
        transport.wait(transport.irecv(room, before), transport.isend(data, after))

    return exchange


def _memory(comm: Communicator, advance: Advance) -> tuple[float, float]:
    times = []
    for nbytes in SIZES:
        direct = partial(comm.all_reduce, np.zeros(nbytes // 4, np.float32), algorithm="direct")
        times.append(_time_us(direct, nbytes))
        advance()
    share = find("all_reduce", "direct").wire_bytes
    return fit([share(comm.size, nbytes) for nbytes in SIZES], times)


def _time_us(step: Callable[[], object], nbytes: int) -> float:
    """Return the median over batches of what one step takes; as many steps on every rank."""
    repeats = max(2, min(100, (1 << 21) // nbytes))
    times = []
    for _ in range(_BATCHES):
        step()
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        times.append((time.perf_counter() - start) / repeats * 1e6)
    return statistics.median(times)
