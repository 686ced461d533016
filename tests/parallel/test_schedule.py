"""Schedules are stated as the staircases that they draw."""

from __future__ import annotations

import pytest

from pycomm.errors import ArgumentError
from pycomm.parallel.schedule import Backward, Forward, draw, fill_drain, find_schedule


def picture(stages: int, microbatches: int) -> list[str]:
    return [line.rstrip() for line in draw(fill_drain(stages, microbatches)).splitlines()]


def test_fill_drain_is_a_staircase() -> None:
    assert picture(3, 4) == [
        "clock   0  1  2  3  4  5  6  7  8  9  10 11",
        "stage 0 F0 F1 F2 F3 .  .  .  .  B3 B2 B1 B0",
        "stage 1 .  F0 F1 F2 F3 .  .  B3 B2 B1 B0 .",
        "stage 2 .  .  F0 F1 F2 F3 B3 B2 B1 B0 .  .",
    ]


def test_fill_drain_with_fewer_microbatches_than_stages() -> None:
    assert picture(4, 2) == [
        "clock   0  1  2  3  4  5  6  7  8  9",
        "stage 0 F0 F1 .  .  .  .  .  .  B1 B0",
        "stage 1 .  F0 F1 .  .  .  .  B1 B0 .",
        "stage 2 .  .  F0 F1 .  .  B1 B0 .  .",
        "stage 3 .  .  .  F0 F1 B1 B0 .  .  .",
    ]


def test_one_microbatch_is_sequential() -> None:
    assert picture(3, 1) == [
        "clock   0  1  2  3  4  5",
        "stage 0 F0 .  .  .  .  B0",
        "stage 1 .  F0 .  .  B0 .",
        "stage 2 .  .  F0 B0 .  .",
    ]


def test_one_stage_has_no_bubble() -> None:
    assert picture(1, 3) == ["clock   0  1  2  3  4  5", "stage 0 F0 F1 F2 B2 B1 B0"]


@pytest.mark.parametrize("stages", range(1, 7))
@pytest.mark.parametrize("microbatches", range(1, 9))
def test_every_action_comes_once_and_after_what_it_needs(stages: int, microbatches: int) -> None:
    schedule = fill_drain(stages, microbatches)
    clock = {action: k for row in schedule for k, action in enumerate(row) if action}
    every = [(s, m) for s in range(stages) for m in range(microbatches)]
    assert sum(action is not None for row in schedule for action in row) == 2 * len(every)
    for s, m in every:
        assert clock[Forward(s, m)] < clock[Backward(s, m)]
        if s > 0:
            assert clock[Forward(s - 1, m)] < clock[Forward(s, m)]
            assert clock[Backward(s, m)] < clock[Backward(s - 1, m)]


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 4), (3, 4), (4, 2)])
def test_bubble_is_as_documented(stages: int, microbatches: int) -> None:
    for row in fill_drain(stages, microbatches):
        assert len(row) == 2 * (stages + microbatches - 1)
        assert row.count(None) == 2 * (stages - 1)


def test_schedules_are_found_by_name() -> None:
    assert find_schedule("fill_drain") is fill_drain
    with pytest.raises(ArgumentError, match="schedule='zigzag' does not exist.*'fill_drain'"):
        find_schedule("zigzag")
