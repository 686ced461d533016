"""What a pipeline's idle time was, beside what its schedule makes unavoidable."""

from __future__ import annotations

from typing import Any

from pycomm.parallel.idle import Times
from pycomm.parallel.schedules.actions import Schedule
from pycomm.parallel.schedules.timeline import count_stages, idle_share
from pycomm.parallel.splitting.split import Split
from pycomm.trainers.better_cut import BetterCut, find_better_cut

FAR_ABOVE = 0.1
"""Idle time of which share of all, besides what the schedule needs, is to be explained."""

UNEQUAL = 1.1
"""A stage that computes so many times its equal share is slow."""

Rows = list[dict[str, Any]]


class IdleReport:
    """The times of a rank in all steps, and what the times of all ranks say together.

    Args:
        plan: the schedule, in words.
        schedule: of a step.
        split: what was cut where; None for parts that the user has made.
    """

    def __init__(self, plan: str, schedule: Schedule, split: Split | None):
        self._plan, self._schedule, self._split = plan, schedule, split
        self._times = Times()

    def add(self, times: Times) -> None:
        """Add the times of a step."""
        self._times.add(times)

    def row(self) -> dict[str, Any]:
        """Return what this rank's row of the report says of the pipeline."""
        return pipeline_row(self._times, idle_share(self._schedule))

    def explained(self, rows: Rows) -> Rows:
        """Return the rows of all ranks, each with the same `better_cut`, see `BetterCut`.

        It is None where ranks do not idle far longer than they must, where no other cut is known
        to be better, and where the user has made the parts.
        """
        better = self._better_cut(rows)
        return [{**row, "better_cut": better} for row in rows]

    def remarks(self, rows: Rows) -> list[str]:
        """Return what is to be said below the rows."""
        return idle_remarks(rows, self._plan)

    def _better_cut(self, rows: Rows) -> BetterCut | None:
        seconds = stage_seconds(rows)
        if self._split is None or len(seconds) < count_stages(self._schedule):
            return None
        if not _is_far_above(rows):
            return None
        times = [seconds[stage] for stage in sorted(seconds)]
        return find_better_cut(self._split, times, self._schedule)


def pipeline_row(times: Times, ideal: float) -> dict[str, Any]:
    """Return what a rank's row of the report says of the pipeline; times in seconds.

    Args:
        times: of all steps.
        ideal: the idle share of the schedule, of equal stages.
    """
    return {
        "pipeline_s": times.total_s,
        "stages_s": dict(times.computing_s),
        "waiting_s": dict(times.waiting_s),
        "ending_s": times.ending_s,
        "transferring_s": times.transferring_s,
        "idle_share": times.idle_s / times.total_s if times.total_s else 0.0,
        "ideal_share": ideal,
    }


def stage_seconds(rows: Rows) -> dict[int, float]:
    """Return how long each stage computed: the mean of the ranks that have it."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for stage, seconds in row["stages_s"].items():
            found.setdefault(stage, []).append(seconds)
    return {stage: sum(each) / len(each) for stage, each in found.items()}


def idle_remarks(rows: Rows, plan: str) -> list[str]:
    """Return how long the ranks idled, and if that is far too long, why and what would help.

    Args:
        rows: of all ranks.
        plan: the schedule, in words.
    """
    if not any(row["pipeline_s"] for row in rows):
        return []
    idle, ideal = _idle(rows), rows[0]["ideal_share"]
    said = f"the pipeline idled {idle:.0%} of the time; {plan} idles {ideal:.0%} with equal stages"
    why = [_reason(rows)] if _is_far_above(rows) else []
    better: BetterCut | None = rows[0].get("better_cut")
    return [said, *why, *([] if better is None else [_advice(better)])]


def _idle(rows: Rows) -> float:
    total = sum(row["pipeline_s"] for row in rows)
    return sum(row["idle_share"] * row["pipeline_s"] for row in rows) / total if total else 0.0


def _is_far_above(rows: Rows) -> bool:
    return _idle(rows) > rows[0]["ideal_share"] + FAR_ABOVE


def _reason(rows: Rows) -> str:
    seconds = stage_seconds(rows)
    slowest = max(seconds, key=lambda stage: seconds[stage])
    share, equal = seconds[slowest] / sum(seconds.values()), 1 / len(seconds)
    if share > UNEQUAL * equal:
        ranks = [rank for rank, row in enumerate(rows) if slowest in row["stages_s"]]
        where = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
        return (
            f"stage {slowest} ({where}) is the slowest: {share:.0%} of all computing, where "
            f"{equal:.0%} would be equal: give it fewer layers, or smaller ones"
        )
    return (
        "the stages are equal: messages are slow, the ranks share cores, or microbatches are so "
        "small that their time varies"
    )


def _advice(better: BetterCut) -> str:
    return (
        f"cuts={better['cuts']} would be {better['speedup']:.2f} times as fast, by the times "
        "measured"
    )
