"""Measures what communication costs: links by plain messages, and what algorithms make of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from typing import Any

import numpy as np

from pycomm.algorithms.registry import Algorithm, algorithms
from pycomm.communicator import Communicator
from pycomm.costs import Costs, Link
from pycomm.transport.base import Transport
from pycomm.tuning import link_name, load

SIZES = (8, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22)
_BATCHES = 5

Advance = Callable[[], None]
"""Called after each of `parts(comm)` parts of the measurement, on every rank."""

_CALLS: dict[str, Callable[[Communicator, np.ndarray, np.ndarray, str | None], Any]] = {
    "all_reduce": lambda comm, x, out, name: comm.all_reduce(x, algorithm=name),
    "reduce_scatter": lambda comm, x, out, name: comm.reduce_scatter(
        x, out=out[:1], algorithm=name
    ),
    "all_gather": lambda comm, x, out, name: comm.all_gather(x[0], out, algorithm=name),
    "broadcast": lambda comm, x, out, name: comm.broadcast(x, algorithm=name),
    "reduce": lambda comm, x, out, name: comm.reduce(x, algorithm=name),
    "gather": lambda comm, x, out, name: comm.gather(x[0], out=out, algorithm=name),
    "all_to_all": lambda comm, x, out, name: comm.all_to_all(x, out, algorithm=name),
}
"""Each on two arrays of (ranks, …). The others have no choice between hosts, and take no name
(barrier) or send something else, too (scatter)."""


def parts(comm: Communicator) -> int:
    """Return of how many parts `measure` consists; collective."""
    return len(SIZES) + len(_measured(comm)) if comm.size > 1 else 0


def measure(comm: Communicator, known: Costs, advance: Advance) -> Costs:
    """Measure the links that the ranks of `comm` have, and its algorithms; collective.

    Messages go from one rank of each host to the next, all at once; where there is one host, from
    rank 0 to rank 1 and back, past their shared memory.

    Returns:
        `known` with what was measured; the same on every rank.
    """
    hosts = comm.all_gather_object(socket.gethostname())
    firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
    several = len(firsts) > 1
    messages = _messages(comm, firsts if several else [0, 1], advance)
    found = {}
    for algorithm in _measured(comm):
        key = f"{link_name(algorithm, comm.transport)}/{algorithm.kind}/{algorithm.name}"
        found[key] = _algorithm(comm, algorithm)
        advance()
    links = {"hosts" if several else "messages": messages}
    if direct := found.get("memory/all_reduce/direct"):
        links["memory"] = direct
    where = f"{comm.size} ranks on {', '.join(dict.fromkeys(hosts))}"
    source = f"measured {date.today().isoformat()}, {where}, {comm.world.wire.library}"
    named = [{k: Link(*fitted, source) for k, fitted in m.items()} for m in (links, found)]
    return comm.broadcast_object(known.updated(*named))


def fit(loads: Sequence[tuple[float, float]], times_us: Sequence[float]) -> tuple[float, float]:
    """Fit latency_us · steps + bytes / bandwidth_gbps to times, with the least relative errors.

    Args:
        loads: steps and bytes of each; more bytes later.
        times_us: what each took.

    Returns:
        latency_us and bandwidth_gbps, both above 0: where noise would have one of them below, as
        if the least, or the largest, consisted of it alone.
    """
    times, rows = np.array(times_us), np.array(loads, float)
    ones = np.ones(len(times))
    latency, per_byte = np.linalg.lstsq(rows / times[:, None], ones, rcond=None)[0]
    if latency <= 0:
        latency = min(times / rows[:, 0])
    if per_byte <= 0:
        per_byte = times[-1] / rows[-1, 1]
    return float(latency), float(1e-3 / per_byte)


def _measured(comm: Communicator) -> list[Algorithm]:
    return [a for a in algorithms() if a.kind in _CALLS and a.supports(comm.transport)]


def _messages(comm: Communicator, ring: Sequence[int], advance: Advance) -> tuple[float, float]:
    times = []
    for nbytes in SIZES:
        if comm.rank in ring:
            times.append(_time_us(_exchange(comm.transport, ring, nbytes), nbytes))
        comm.barrier()
        advance()
    return fit([(1, nbytes) for nbytes in SIZES], times) if times else (1.0, 1.0)


def _exchange(transport: Transport, ring: Sequence[int], nbytes: int) -> Callable[[], None]:
    place = ring.index(transport.rank)
    after, before = ring[(place + 1) % len(ring)], ring[place - 1]
    data, room = np.zeros(nbytes, np.uint8), np.empty(nbytes, np.uint8)

    def exchange() -> None:
        transport.wait(transport.irecv(room, before), transport.isend(data, after))

    return exchange


def _algorithm(comm: Communicator, algorithm: Algorithm) -> tuple[float, float]:
    loads, times = [], []
    for nbytes in SIZES:
        x = np.zeros((comm.size, -(-nbytes // (4 * comm.size))), np.float32)
        usual = comm.world.tuning.choose(algorithm.kind, comm.transport, x.nbytes).algorithm
        name = None if algorithm == usual else algorithm.name
        call = partial(_CALLS[algorithm.kind], comm, x, np.empty_like(x), name)
        loads.append(load(algorithm, comm.transport, x.nbytes))
        times.append(_time_us(call, x.nbytes, most=20))
    return fit(loads, times)


def _time_us(step: Callable[[], Any], nbytes: int, most: int = 100) -> float:
    """Return what a step takes in the best of some batches: what disturbs it only adds to that.

    Args:
        step: is done as often on every rank.
        nbytes: the more, the fewer steps.
        most: steps of a batch.
    """
    repeats = max(2, min(most, (1 << 21) // nbytes))
    times = []
    for _ in range(_BATCHES):
        step()
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        times.append((time.perf_counter() - start) / repeats * 1e6)
    return min(times)
