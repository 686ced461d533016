"""Pictures of schedules, as text."""

from __future__ import annotations

from pycomm.parallel.schedules.actions import Action, Schedule
from pycomm.parallel.schedules.timeline import count_stages, timeline

ROUNDS = "abcdefghijklmnopqrstuvwxyz"
"""What the stages of a rank are called, if it has several: a letter each."""


def clocks(schedule: Schedule) -> list[list[Action | None]]:
    """Return for each rank its action in each clock, if each takes one; None is idle."""
    spans = timeline(schedule)
    end = int(max(row[-1].stop for row in spans))
    rows: list[list[Action | None]] = [[None] * end for _ in spans]
    for row, cells in zip(spans, rows):
        for action, start, _ in row:
            cells[int(start)] = action
    return rows


def draw(schedule: Schedule) -> str:
    """Return a picture of `schedule`: a row for each rank, a column for each clock."""
    ranks = len(schedule)
    several = count_stages(schedule) > ranks

    def name(action: Action | None) -> str:
        if action is None:
            return "."
        return f"{action}{ROUNDS[action.stage // ranks % len(ROUNDS)] if several else ''}"

    rows = clocks(schedule)
    table = [["clock", *map(str, range(len(rows[0])))]]
    who = "rank" if several else "stage"
    table += [[f"{who} {index}", *map(name, row)] for index, row in enumerate(rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = (" ".join(c.ljust(w) for c, w in zip(row, widths)) for row in table)
    return "\n".join(line.rstrip() for line in lines)
