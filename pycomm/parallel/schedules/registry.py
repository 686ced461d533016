"""Every schedule by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pycomm.errors import ArgumentError
from pycomm.parallel.schedules.actions import Schedule

Build = Callable[[int, int, int], Schedule]


@dataclass(frozen=True)
class ScheduleKind:
    """A schedule, before it is known how many ranks and microbatches there are.

    Attributes:
        name: what `schedule=` calls it.
        build: (ranks, microbatches, stages a rank) → the schedule.
        stages_per_rank: how many stages a rank has unless the user says it.
    """

    name: str
    build: Build
    stages_per_rank: int

    def stages_on_a_rank(self, wanted: int | None) -> int:
        """Return how many stages each rank gets if `wanted` are asked for.

        Raises:
            ArgumentError: the schedule cannot have so many.
        """
        if wanted is None:
            return self.stages_per_rank
        if not isinstance(wanted, int) or wanted < 1:
            raise ArgumentError(f"stages_per_rank={wanted!r} must be an integer ≥ 1")
        if wanted > 1 and self.stages_per_rank == 1:
            raise ArgumentError(
                f"schedule={self.name!r} has one stage a rank, not stages_per_rank={wanted}: "
                f"use schedule='interleaved'"
            )
        return wanted


SCHEDULES: dict[str, ScheduleKind] = {}
"""Every schedule by the name that `schedule=` takes."""


def schedule(name: str, stages_per_rank: int = 1) -> Callable[[Callable[..., Schedule]], Build]:
    """Register a schedule; one with more than one stage a rank is told how many.

    Args:
        name: what `schedule=` calls it.
        stages_per_rank: how many stages a rank has unless the user says it; 1 means always one.
    """

    def register(function: Callable[..., Schedule]) -> Build:
        takes_stages = stages_per_rank > 1

        def build(ranks: int, microbatches: int, stages: int = stages_per_rank) -> Schedule:
            return function(ranks, microbatches, *([stages] if takes_stages else []))

        build.__doc__, build.__name__ = function.__doc__, function.__name__
        SCHEDULES[name] = ScheduleKind(name, build, stages_per_rank)
        return build

    return register


def find_schedule(name: str) -> ScheduleKind:
    """Return the schedule called `name`.

    Raises:
        ArgumentError: there is none; the message lists those that exist.
    """
    if name not in SCHEDULES:
        names = ", ".join(repr(known) for known in SCHEDULES)
        raise ArgumentError(f"schedule={name!r} does not exist: choose from {names}")
    return SCHEDULES[name]
