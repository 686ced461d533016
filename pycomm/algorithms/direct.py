"""Direct: the transport does the whole collective as one fused operation, as shared memory can."""

from __future__ import annotations

from collections.abc import Callable

from pycomm.algorithms.registry import algorithm
from pycomm.kernels.base import Kernels
from pycomm.transport.base import Transport
from pycomm.transport.job import Job

_SHARES: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "broadcast": lambda n: float(n > 1),
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "reduce": lambda n: float(n > 1),
    "gather": lambda n: (n - 1) / n,
    "scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "barrier": lambda n: 0.0,
}
"""What part of its bytes the busiest rank reads from and writes to the memory of others."""


def _register(kind: str, share: Callable[[int], float]) -> None:
    @algorithm(
        kind,
        "direct",
        steps=lambda ranks, nbytes: 1,
        wire_bytes=lambda ranks, nbytes: share(ranks) * nbytes,
        supports=lambda transport: kind in transport.fused,
        needs="shared memory between all ranks",
    )
    def direct(transport: Transport, kernels: Kernels, job: Job) -> None:
        """Run the collective in 1 step, in the memory of the ranks; sums are in rank order.

        1. The transport reads and writes the ranks' buffers in place (`Transport.run`).

        Bytes that the busiest rank moves to or from others, of S: all_reduce 2(n−1)/n·S,
        broadcast and reduce S, barrier none, all others (n−1)/n·S.
        """
        transport.run(job)


for _kind, _share in _SHARES.items():
    _register(_kind, _share)
