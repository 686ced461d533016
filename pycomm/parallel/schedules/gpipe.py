"""Fill the pipeline, then drain it."""

from __future__ import annotations

from pycomm.parallel.schedules.actions import Action, Backward, Forward, Schedule
from pycomm.parallel.schedules.registry import schedule


@schedule("gpipe")
def gpipe(ranks: int, microbatches: int) -> Schedule:
    """Fill the pipeline with all microbatches, then drain it, the last one first.

    ::

        clock   0  1  2  3  4  5  6  7  8  9  10 11
        stage 0 F0 F1 F2 F3 .  .  .  .  B3 B2 B1 B0
        stage 1 .  F0 F1 F2 F3 .  .  B3 B2 B1 B0 .
        stage 2 .  .  F0 F1 F2 F3 B3 B2 B1 B0 .  .

    With p ranks and m microbatches each stage idles in p − 1 forward and p − 1 backward clocks,
    (p − 1)/(m + p − 1) of the time, and keeps the activations of all m microbatches. Source: Huang
    et al., GPipe (2019), figure 2.
    """
    return [_row(rank, microbatches) for rank in range(ranks)]


def _row(rank: int, microbatches: int) -> list[Action]:
    fill: list[Action] = [Forward(rank, m) for m in range(microbatches)]
    return fill + [Backward(rank, m) for m in reversed(range(microbatches))]
