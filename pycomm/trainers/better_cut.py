"""A better cut of a model, by the times that its stages took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from pycomm.errors import ArgumentError
from pycomm.parallel.partition import better_cut, scaled_costs
from pycomm.parallel.schedules.actions import Schedule
from pycomm.parallel.schedules.timeline import duration
from pycomm.parallel.splitting.cuts import ranges_of
from pycomm.parallel.splitting.in_place import refuse_hidden_changes
from pycomm.parallel.splitting.split import Split

WORTH_SAYING = 1.03
"""A better cut is told if it is predicted to be so many times as fast."""


class BetterCut(TypedDict):
    """Where to cut instead, and what that is predicted to gain.

    Attributes:
        cuts: what `cuts=` takes.
        speedup: how many times as fast a step would be.
        stages_s: {stage: seconds that it would have computed in the same steps}.
    """

    cuts: list[str]
    speedup: float
    stages_s: dict[int, float]


def find_better_cut(
    split: Split, stages_s: Sequence[float], schedule: Schedule
) -> BetterCut | None:
    """Return the best cut by measured times, if it is worth saying.

    A layer's time is its stage's, divided as the costs say by which the model was split. What a
    step takes is then read off the schedule; so where stages do not overlap there is no gain.

    Args:
        split: what was cut where.
        stages_s: seconds of computing of each stage, in any number of steps.
        schedule: of a step.
    """
    costs = scaled_costs(split.costs, split.ranges, stages_s)
    ranges, _ = better_cut(costs, split.ranges)
    seconds = [sum(costs[i] for i in members) for members in ranges]
    after = duration(schedule, seconds)
    cuts = [split.names[members.start] for members in ranges[1:]]
    if not after or not _can_be_cut(split, cuts, ranges):
        return None
    speedup = duration(schedule, stages_s) / after
    if speedup < WORTH_SAYING:
        return None
    return {"cuts": cuts, "speedup": speedup, "stages_s": dict(enumerate(seconds))}


def _can_be_cut(split: Split, cuts: Sequence[str], ranges: Sequence[range]) -> bool:
    try:
        refuse_hidden_changes(split.flow, ranges)
        return ranges_of(cuts, split.names) == ranges
    except ArgumentError:
        return False
