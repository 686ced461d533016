"""Chooses an algorithm: the cheapest by latency and bandwidth among those of the same order."""

from __future__ import annotations

from dataclasses import dataclass

from pycomm.algorithms.registry import Algorithm, algorithms, find
from pycomm.errors import ArgumentError
from pycomm.transport.base import Transport

LATENCY_US = 5.0
BANDWIDTH_GBPS = 5.0
"""Of one message between hosts, until measured."""


@dataclass(frozen=True)
class Choice:
    """An algorithm, and why it was chosen."""

    algorithm: Algorithm
    reason: str
    predicted_us: float


ORDERS = ("hierarchical", "ring", "rank")
"""The orders of summation; the first that can be used is a communicator's, for all sizes."""


def predict_us(algorithm: Algorithm, transport: Transport, nbytes: int) -> float:
    """Return latency·steps + bytes/bandwidth in microseconds."""
    steps, wire_bytes = algorithm.cost(transport, nbytes)
    return LATENCY_US * steps + wire_bytes / (BANDWIDTH_GBPS * 1e3)


def choose(
    kind: str, transport: Transport, nbytes: int, name: str | None = None, order: str | None = None
) -> Choice:
    """Choose the algorithm for one call; the same on every rank.

    Args:
        kind: the collective.
        transport: what it runs on.
        nbytes: the larger of input and output.
        name: an algorithm asked for, or None.
        order: "rank" for sums in rank order; None is that on one host, "hierarchical" between
            hosts with as many ranks each, and over one, and the ring's otherwise.

    Raises:
        ArgumentError: the algorithm asked for does not exist, cannot run here, or adds in another
            order than the one asked for.
    """
    if order not in (None, "rank"):
        raise ArgumentError(f"order={order!r} is not 'rank' or None")
    if name is not None:
        return _named(find(kind, name), transport, nbytes, order)
    usable = [a for a in algorithms(kind) if a.supports(transport)]
    fused = [a for a in usable if a.name == "direct"]
    if fused:
        reason = "all ranks share memory; adds in rank order"
        return Choice(fused[0], reason, predict_us(fused[0], transport, nbytes))
    wanted = order or next(o for o in ORDERS if any(a.order == o for a in usable))
    same = [a for a in usable if a.order == wanted]
    best = min(same, key=lambda a: predict_us(a, transport, nbytes))
    reason = f"cheapest of {', '.join(a.name for a in same)}, which add in {wanted} order"
    return Choice(best, reason, predict_us(best, transport, nbytes))


def _named(algorithm: Algorithm, transport: Transport, nbytes: int, order: str | None) -> Choice:
    if not algorithm.supports(transport):
        raise ArgumentError(
            f"algorithm={algorithm.name!r} on {transport.size} ranks needs {algorithm.needs}"
        )
    if order is not None and algorithm.order != order:
        raise ArgumentError(
            f"algorithm={algorithm.name!r} adds in {algorithm.order} order, not in order={order!r}"
        )
    return Choice(algorithm, "asked for by name", predict_us(algorithm, transport, nbytes))
