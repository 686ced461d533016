"""Pipeline schedules: pure functions from stages and microbatches to what each stage does when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pycomm.errors import ArgumentError


@dataclass(frozen=True)
class Forward:
    """Send a microbatch through a stage."""

    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"F{self.microbatch}"


@dataclass(frozen=True)
class Backward:
    """Send a microbatch's gradient back through a stage."""

    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"B{self.microbatch}"


Action = Forward | Backward
Schedule = list[list[Action | None]]
"""For each stage its action in each clock; None is a bubble."""


def fill_drain(stages: int, microbatches: int) -> Schedule:
    """Fill the pipeline with all microbatches, then drain it: GPipe without recomputation.

    ::

        clock    0  1  2  3  4  5  6  7  8  9  10 11
        stage 0  F0 F1 F2 F3 .  .  .  .  B3 B2 B1 B0
        stage 1  .  F0 F1 F2 F3 .  .  B3 B2 B1 B0 .
        stage 2  .  .  F0 F1 F2 F3 B3 B2 B1 B0 .  .

    Stage s runs forward of microbatch m in clock s + m; backward mirrors forward in time. Each
    stage idles in 2(stages − 1) of 2(stages + microbatches − 1) clocks, and keeps the activations
    of all microbatches. Source: Huang et al., GPipe (2019), figure 2.
    """
    clocks = stages + microbatches - 1
    schedule: Schedule = [[None] * (2 * clocks) for _ in range(stages)]
    for stage in range(stages):
        for microbatch in range(microbatches):
            clock = stage + microbatch
            schedule[stage][clock] = Forward(stage, microbatch)
            schedule[stage][-1 - clock] = Backward(stage, microbatch)
    return schedule


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {"fill_drain": fill_drain}
"""Every schedule by the name that `schedule=` takes."""


def find_schedule(name: str) -> Callable[[int, int], Schedule]:
    """Return the schedule called `name`.

    Raises:
        ArgumentError: there is none; the message lists those that exist.
    """
    if name not in SCHEDULES:
        names = ", ".join(repr(known) for known in SCHEDULES)
        raise ArgumentError(f"schedule={name!r} does not exist: choose from {names}")
    return SCHEDULES[name]


def draw(schedule: Schedule) -> str:
    """Return a picture of `schedule`: a row for each stage, a column for each clock."""
    rows = [["clock", *map(str, range(len(schedule[0])))]]
    rows += [[f"stage {s}", *(str(a or ".") for a in row)] for s, row in enumerate(schedule)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (" ".join(c.ljust(w) for c, w in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
