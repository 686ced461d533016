"""When each action of a schedule runs if nothing but the actions takes time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pycomm.errors import ArgumentError
from pycomm.parallel.schedules.actions import Action, Backward, Forward, Schedule, Weights


class Span(NamedTuple):
    """An action, from when to when."""

    action: Action
    start: float
    stop: float


Cost = Callable[[Action], float]
"""What an action takes, in any unit."""


def one_clock(action: Action) -> float:
    """Return the cost of an action where each takes one clock."""
    return 1.0


def equal_costs(schedule: Schedule) -> Cost:
    """Return costs where forward and the two halves of backward take a clock each."""
    halves = {(a.stage, a.microbatch) for row in schedule for a in row if isinstance(a, Weights)}

    def cost(action: Action) -> float:
        whole = isinstance(action, Backward) and (action.stage, action.microbatch) not in halves
        return 2.0 if whole else 1.0

    return cost


def timeline(schedule: Schedule, cost: Cost = one_clock) -> list[list[Span]]:
    """Return for each rank when its actions run: each as soon as what it needs is done.

    Raises:
        ArgumentError: the ranks would wait for each other for ever.
    """
    last = count_stages(schedule) - 1
    ends: dict[Action, float] = {}
    rows: list[list[Span]] = [[] for _ in schedule]
    progress = True
    while progress:
        progress = False
        for actions, row in zip(schedule, rows):
            while len(row) < len(actions) and all(
                need in ends for need in needs(actions[len(row)], last)
            ):
                action = actions[len(row)]
                free = row[-1].stop if row else 0.0
                start = max([free, *(ends[need] for need in needs(action, last))])
                ends[action] = start + cost(action)
                row.append(Span(action, start, ends[action]))
                progress = True
    for actions, row in zip(schedule, rows):
        if len(row) < len(actions):
            raise ArgumentError(f"the schedule cannot run: {actions[len(row)]!r} never can")
    return rows


def needs(action: Action, last: int) -> list[Action]:
    """Return what must be done before an action, in a pipeline whose last stage is `last`."""
    stage, microbatch = action.stage, action.microbatch
    if isinstance(action, Forward):
        return [Forward(stage - 1, microbatch)] if stage > 0 else []
    if isinstance(action, Weights):
        return [Backward(stage, microbatch)]
    before = [Backward(stage + 1, microbatch)] if stage < last else []
    return [Forward(stage, microbatch), *before]


def count_stages(schedule: Schedule) -> int:
    """Return how many stages there are on all ranks."""
    return 1 + max(action.stage for row in schedule for action in row)


def duration(schedule: Schedule, seconds: Sequence[float]) -> float:
    """Return how long a batch takes where stages need different times for a microbatch.

    Args:
        seconds: of each stage, forward and backward together, divided as in `equal_costs`.
    """
    clocks = equal_costs(schedule)
    rows = timeline(schedule, lambda action: clocks(action) * seconds[action.stage] / 3)
    return max(row[-1].stop for row in rows)


def idle_share(schedule: Schedule) -> float:
    """Return which part of the time ranks idle, on average, where costs are as `equal_costs`."""
    cost = equal_costs(schedule)
    end = max(row[-1].stop for row in timeline(schedule, cost))
    busy = sum(cost(action) for row in schedule for action in row)
    return 1 - busy / (end * len(schedule))


def most_held(schedule: Schedule) -> list[int]:
    """Return for each stage of how many microbatches it keeps activations at most.

    From forward until the last action with that microbatch.
    """
    most = [0] * count_stages(schedule)
    for row in schedule:
        final = {(a.stage, a.microbatch): index for index, a in enumerate(row)}
        held = [0] * len(most)
        for index, action in enumerate(row):
            held[action.stage] += isinstance(action, Forward)
            most[action.stage] = max(most[action.stage], held[action.stage])
            held[action.stage] -= final[action.stage, action.microbatch] == index
    return most
