"""What a pipeline's idle time was, beside what its schedule makes unavoidable."""

from __future__ import annotations

from typing import Any

from pycomm.parallel.idle import Times

FAR_ABOVE = 0.1
"""Idle time of which share of all, besides what the schedule needs, is to be explained."""

UNEQUAL = 1.1
"""A stage that computes so many times its equal share is slow."""


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


def idle_remarks(rows: list[dict[str, Any]], plan: str) -> list[str]:
    """Return how long the ranks idled, and if that is far too long, why.

    Args:
        rows: of all ranks.
        plan: the schedule, in words.
    """
    total = sum(row["pipeline_s"] for row in rows)
    if total == 0:
        return []
    idle = sum(row["idle_share"] * row["pipeline_s"] for row in rows) / total
    ideal = rows[0]["ideal_share"]
    said = f"the pipeline idled {idle:.0%} of the time; {plan} idles {ideal:.0%} with equal stages"
    return [said, *([_reason(rows)] if idle > ideal + FAR_ABOVE else [])]


def _reason(rows: list[dict[str, Any]]) -> str:
    seconds = {stage: s for row in rows for stage, s in row["stages_s"].items()}
    slowest = max(seconds, key=lambda stage: seconds[stage])
    share, equal = seconds[slowest] / sum(seconds.values()), 1 / len(seconds)
    if share > UNEQUAL * equal:
        return (
            f"stage {slowest} (rank {slowest % len(rows)}) is the slowest: {share:.0%} of all "
            f"computing, where {equal:.0%} would be equal: give it less by balance="
        )
    return (
        "the stages are equal: messages are slow, the ranks share cores, or microbatches are so "
        "small that their time varies"
    )
