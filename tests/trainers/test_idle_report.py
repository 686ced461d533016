"""What a report says of a pipeline's idle time."""

from __future__ import annotations

import pytest

from pycomm.parallel.idle import Times
from pycomm.trainers.idle_report import idle_remarks, pipeline_row


def times(stage: int, computing_s: float, waiting_s: float) -> Times:
    spent = Times()
    spent.computing_s[stage] = computing_s
    spent.waiting_s[1 - stage] = waiting_s - 0.5
    spent.ending_s, spent.transferring_s = 0.5, 0.25
    return spent


def remarks(*spent: Times, ideal: float = 0.1) -> list[str]:
    return idle_remarks([pipeline_row(each, ideal) for each in spent], "1f1b of 9 microbatches")


def test_a_row_has_all_times_and_both_shares() -> None:
    total = Times()
    for _ in range(2):
        total.add(times(0, 3.0, 0.75))
    row = pipeline_row(total, 0.1)
    assert row["stages_s"] == {0: 6.0} and row["waiting_s"] == {1: 0.5}
    assert (row["ending_s"], row["transferring_s"], row["pipeline_s"]) == (1.0, 0.5, 8.0)
    assert (row["idle_share"], row["ideal_share"]) == (pytest.approx(1.5 / 8), 0.1)


def test_nothing_is_said_before_the_first_step() -> None:
    assert remarks(Times(), Times()) == []


def test_a_pipeline_that_idles_as_it_must_is_not_explained() -> None:
    (said,) = remarks(times(0, 8.0, 1.75), times(1, 8.0, 1.75))
    assert said == (
        "the pipeline idled 18% of the time; 1f1b of 9 microbatches idles 10% with equal stages"
    )


def test_the_slowest_stage_and_its_share() -> None:
    _, why = remarks(times(0, 6.0, 0.75), times(1, 2.0, 4.75))
    assert why.startswith("stage 0 (rank 0) is the slowest: 75% of all computing, where 50% would")


def test_equal_stages_that_idle_have_another_reason() -> None:
    _, why = remarks(times(0, 4.0, 4.75), times(1, 4.0, 4.75))
    assert why.startswith("the stages are equal: messages are slow, the ranks share cores, or")
