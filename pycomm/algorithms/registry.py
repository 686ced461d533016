"""The table of algorithms, one decorated function each; tests, tuning and benchmarks iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pycomm.errors import ArgumentError
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job

Run = Callable[[Transport, Kernels, Job], None]
Cost = Callable[..., float]
F = TypeVar("F", bound=Run)


@dataclass(frozen=True)
class Algorithm:
    """One way to do a collective.

    Attributes:
        kind: the collective, for instance "all_reduce".
        name: what `algorithm=` calls it.
        order: in which order it adds: "rank" is 0…n−1; docs/algorithms.md describes every one.
        steps: (ranks, nbytes) → messages that follow each other.
        wire_bytes: (ranks, nbytes) → bytes that the busiest rank sends; nbytes is the larger of
            input and output.
        supports: whether it runs on a transport.
        needs: what a transport must have to be supported, for error messages.
        by_host: steps and wire_bytes also take the number of hosts, and count messages between
            hosts, and operations within one.
        opens: its first step is an operation among the ranks of a host that carries the job's
            fingerprint and leaves all memory of the caller as it is.
        run: the algorithm itself.
    """

    kind: str
    name: str
    order: str
    steps: Cost
    wire_bytes: Cost
    supports: Callable[[Transport], bool]
    needs: str
    by_host: bool
    opens: bool
    run: Run

    def cost(self, transport: Transport, nbytes: int) -> tuple[float, float]:
        """Return steps and wire_bytes on `transport`."""
        hosts = (transport.across.size,) if self.by_host and transport.across else ()
        size = transport.size
        return self.steps(size, nbytes, *hosts), self.wire_bytes(size, nbytes, *hosts)


_ALGORITHMS: dict[tuple[str, str], Algorithm] = {}


def algorithm(
    kind: str,
    name: str,
    *,
    steps: Cost,
    wire_bytes: Cost,
    order: str = "rank",
    supports: Callable[[Transport], bool] = lambda transport: True,
    needs: str = "",
    by_host: bool = False,
    opens: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function `(transport, kernels, job)` as an algorithm."""

    def register(run: F) -> F:
        _ALGORITHMS[kind, name] = Algorithm(
            kind, name, order, steps, wire_bytes, supports, needs, by_host, opens, run
        )
        return run

    return register


def algorithms(kind: str | None = None) -> list[Algorithm]:
    """Return all registered algorithms, or those for one collective, in order of registration."""
    return [a for a in _ALGORITHMS.values() if kind in (None, a.kind)]


def find(kind: str, name: str) -> Algorithm:
    """Return the algorithm `name` for the collective `kind`.

    Raises:
        ArgumentError: there is none; the message lists those that exist.
    """
    if (kind, name) not in _ALGORITHMS:
        names = ", ".join(repr(a.name) for a in algorithms(kind))
        raise ArgumentError(f"algorithm={name!r} does not exist for {kind}: choose from {names}")
    return _ALGORITHMS[kind, name]
