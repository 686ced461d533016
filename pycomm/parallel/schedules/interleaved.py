"""One forward, one backward, with several stages a rank."""

from __future__ import annotations

from pycomm.parallel.schedules.actions import Action, Backward, Forward, Schedule
from pycomm.parallel.schedules.registry import schedule


@schedule("interleaved", stages_per_rank=2)
def interleaved(ranks: int, microbatches: int, stages_per_rank: int) -> Schedule:
    """Let every microbatch come round to each rank several times: 1F1B with smaller stages.

    Two stages a rank; those of the first round are a, of the second b::

        clock  0   1   2   3   4   5   6   7   8   9   10  11  12  13  14  15  16  17
        rank 0 F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a .   B2b .   B3b B2a B3a
        rank 1 .   F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a .

    p ranks take the microbatches in groups of p, each group through all of a rank's v stages.
    Each rank idles in 2(p − 1) clocks, which are v times shorter: (p − 1)/(v·m + p − 1) of the
    time, for more messages. If p does not divide m, the last group is smaller, and takes no longer
    than a full one. Source: Narayanan et al., Efficient Large-Scale Language Model Training on GPU
    Clusters (2021), section 2.2.
    """
    padded = -(-microbatches // ranks) * ranks
    rows = [_row(rank, ranks, padded, stages_per_rank) for rank in range(ranks)]
    return [[action for action in row if action.microbatch < microbatches] for row in rows]


def _row(rank: int, ranks: int, microbatches: int, rounds: int) -> list[Action]:
    order = [
        (turn, first + m)
        for first in range(0, microbatches, ranks)
        for turn in range(rounds)
        for m in range(ranks)
    ]
    forward: list[Action] = [Forward(rank + turn * ranks, m) for turn, m in order]
    backward: list[Action] = [Backward(rank + (rounds - 1 - turn) * ranks, m) for turn, m in order]
    ahead = min(2 * (ranks - 1 - rank) + (rounds - 1) * ranks, len(forward))
    row = forward[:ahead]
    for index, action in enumerate(backward):
        row += [*forward[index + ahead : index + ahead + 1], action]
    return row
