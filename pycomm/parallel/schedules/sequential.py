"""One microbatch after the other."""

from __future__ import annotations

from pycomm.parallel.schedules.actions import Backward, Forward, Schedule
from pycomm.parallel.schedules.registry import schedule


@schedule("sequential")
def sequential(ranks: int, microbatches: int) -> Schedule:
    """Send each microbatch forward and back before the next: no two ranks ever work at once.

    ::

        clock   0  1  2  3  4  5  6  7  8  9  10 11
        stage 0 F0 .  .  .  .  B0 F1 .  .  .  .  B1
        stage 1 .  F0 .  .  B0 .  .  F1 .  .  B1 .
        stage 2 .  .  F0 B0 .  .  .  .  F1 B1 .  .

    Of p ranks each idles in (p − 1)/p of the time. A stage keeps the activations of one
    microbatch: the least memory, and what pipelines are measured by.
    """
    return [
        [action(rank, m) for m in range(microbatches) for action in (Forward, Backward)]
        for rank in range(ranks)
    ]
