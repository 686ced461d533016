"""One forward, one backward."""

from __future__ import annotations

from pycomm.parallel.schedules.actions import Action, Backward, Forward, Schedule
from pycomm.parallel.schedules.registry import schedule


@schedule("1f1b")
def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Alternate forward and backward as soon as the first gradient can have come.

    ::

        clock   0  1  2  3  4  5  6  7  8  9  10 11
        stage 0 F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
        stage 1 .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
        stage 2 .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .

    With p ranks and m microbatches, stage s warms up with p − 1 − s forwards. Each stage idles as
    long as in GPipe, (p − 1)/(m + p − 1) of the time, but keeps the activations of min(p − s, m)
    microbatches only. Source: Narayanan et al., PipeDream (2019) and its variant with flushes
    (Memory-Efficient Pipeline-Parallel DNN Training, 2021, figure 2).
    """
    return [row_of(rank, ranks - 1 - rank, microbatches) for rank in range(ranks)]


def row_of(rank: int, ahead: int, microbatches: int) -> list[Action]:
    """Return what a rank does that is `ahead` forward passes ahead of its backward passes."""
    row: list[Action] = [Forward(rank, m) for m in range(min(ahead, microbatches))]
    for m in range(microbatches):
        if m + ahead < microbatches:
            row.append(Forward(rank, m + ahead))
        row.append(Backward(rank, m))
    return row
