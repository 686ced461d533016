"""Schedules are stated as the staircases that they draw, and idle as they say."""

from __future__ import annotations

import inspect

import pytest

from pycomm.errors import ArgumentError
from pycomm.parallel.schedules.actions import Action, Backward, Forward, Weights
from pycomm.parallel.schedules.picture import draw
from pycomm.parallel.schedules.registry import SCHEDULES, find_schedule
from pycomm.parallel.schedules.timeline import (
    duration,
    equal_costs,
    idle_share,
    most_held,
    needs,
    timeline,
)

CASES = [
    (name, ranks, microbatches, stages)
    for name, kind in SCHEDULES.items()
    for ranks in range(1, 7)
    for microbatches in range(1, 13)
    for stages in ([1] if kind.stages_per_rank == 1 else [1, 2, 3])
]
ONCE = [case[:3] for case in CASES if case[3] == 1]


def picture(name: str, *sizes: int) -> list[str]:
    return draw(SCHEDULES[name].build(*sizes)).splitlines()


def idle_clocks(schedule) -> set[float]:
    """Return how long ranks idle where forward and each half of backward take a clock."""
    cost = equal_costs(schedule)
    end = max(row[-1].stop for row in timeline(schedule, cost))
    return {end - sum(map(cost, row)) for row in schedule}


def test_sequential_is_a_staircase_up_and_down() -> None:
    assert picture("sequential", 3, 2, 1) == [
        "clock   0  1  2  3  4  5  6  7  8  9  10 11",
        "stage 0 F0 .  .  .  .  B0 F1 .  .  .  .  B1",
        "stage 1 .  F0 .  .  B0 .  .  F1 .  .  B1 .",
        "stage 2 .  .  F0 B0 .  .  .  .  F1 B1 .  .",
    ]


def test_gpipe_fills_and_drains() -> None:
    assert picture("gpipe", 3, 4, 1) == [
        "clock   0  1  2  3  4  5  6  7  8  9  10 11",
        "stage 0 F0 F1 F2 F3 .  .  .  .  B3 B2 B1 B0",
        "stage 1 .  F0 F1 F2 F3 .  .  B3 B2 B1 B0 .",
        "stage 2 .  .  F0 F1 F2 F3 B3 B2 B1 B0 .  .",
    ]


def test_1f1b_alternates() -> None:
    assert picture("1f1b", 3, 4, 1) == [
        "clock   0  1  2  3  4  5  6  7  8  9  10 11",
        "stage 0 F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3",
        "stage 1 .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .",
        "stage 2 .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .",
    ]


def test_1f1b_with_fewer_microbatches_than_stages() -> None:
    assert picture("1f1b", 4, 2, 1) == [
        "clock   0  1  2  3  4  5  6  7  8  9",
        "stage 0 F0 F1 .  .  .  .  .  B0 .  B1",
        "stage 1 .  F0 F1 .  .  .  B0 .  B1 .",
        "stage 2 .  .  F0 F1 .  B0 .  B1 .  .",
        "stage 3 .  .  .  F0 B0 F1 B1 .  .  .",
    ]


def test_interleaved_comes_round() -> None:
    assert picture("interleaved", 2, 4, 2) == [
        "clock  0   1   2   3   4   5   6   7   8   9   10  11  12  13  14  15  16  17",
        "rank 0 F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a .   B2b .   B3b B2a B3a",
        "rank 1 .   F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a .",
    ]


def test_zb_h1_fills_bubbles_with_weights() -> None:
    assert picture("zb-h1", 3, 4, 1) == [
        "clock   0  1  2  3  4  5  6  7  8  9  10 11 12 13",
        "stage 0 F0 F1 F2 .  .  B0 W0 F3 B1 W1 B2 W2 B3 W3",
        "stage 1 .  F0 F1 .  B0 F2 B1 W0 F3 B2 W1 B3 W2 W3",
        "stage 2 .  .  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3",
    ]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("sequential", (3, 2, 1)),
        ("gpipe", (3, 4, 1)),
        ("1f1b", (3, 4, 1)),
        ("interleaved", (2, 4, 2)),
        ("zb-h1", (3, 4, 1)),
    ],
)
def test_the_pictures_in_the_docstrings(name: str, sizes: tuple[int, ...]) -> None:
    shown = inspect.cleandoc(SCHEDULES[name].build.__doc__ or "")
    for line in picture(name, *sizes):
        assert f"    {line}\n" in shown


@pytest.mark.parametrize(("name", "ranks", "microbatches", "stages"), CASES)
def test_every_action_comes_once_on_its_rank_after_what_it_needs(
    name: str, ranks: int, microbatches: int, stages: int
) -> None:
    schedule = SCHEDULES[name].build(ranks, microbatches, stages)
    spans = {span.action: span for row in timeline(schedule) for span in row}
    kinds: list[type[Action]] = [Forward, Backward, *([Weights] if name == "zb-h1" else [])]
    count = ranks * stages
    expected = {k(s, m) for k in kinds for s in range(count) for m in range(microbatches)}
    assert sum(map(len, schedule)) == len(expected)
    assert set(spans) == expected
    for rank, row in enumerate(schedule):
        assert {action.stage % ranks for action in row} == {rank}
    for action, span in spans.items():
        assert all(spans[need].stop <= span.start for need in needs(action, count - 1))


def test_a_schedule_that_cannot_run() -> None:
    rows: list[list[Action]] = [[Forward(0, 0), Backward(0, 0)], [Backward(1, 0), Forward(1, 0)]]
    with pytest.raises(ArgumentError, match=r"cannot run: Backward\(stage=0, microbatch=0\) never"):
        timeline(rows)


@pytest.mark.parametrize(("name", "ranks", "microbatches"), ONCE)
def test_idle_clocks_are_those_of_the_docstrings(name: str, ranks: int, microbatches: int) -> None:
    p, m = ranks, microbatches
    expected = {
        "sequential": 3 * m * (p - 1),
        "gpipe": 3 * (p - 1),
        "1f1b": 3 * (p - 1),
        "zb-h1": max(p - 1, 2 * p - 1 - m),
    }
    schedule = SCHEDULES[name].build(p, m, 1)
    if name in expected:
        assert idle_clocks(schedule) == {expected[name]}
        share = expected[name] / (3 * m + expected[name])
        assert idle_share(schedule) == pytest.approx(share)


@pytest.mark.parametrize("ranks", range(1, 7))
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_interleaving_makes_bubbles_shorter(ranks: int, stages: int) -> None:
    for m in range(1, 13):
        whole = -(-m // ranks) * ranks
        schedule = SCHEDULES["interleaved"].build(ranks, m, stages)
        idle = max(idle_clocks(schedule))
        if m == whole:
            assert idle == 3 * (ranks - 1)
            assert idle_share(schedule) == pytest.approx((ranks - 1) / (stages * m + ranks - 1))
        assert idle + 3 * m * stages <= 3 * (whole * stages + ranks - 1)


@pytest.mark.parametrize("ranks", range(1, 7))
@pytest.mark.parametrize("microbatches", range(1, 13))
def test_activations_kept(ranks: int, microbatches: int) -> None:
    def held(name: str) -> list[int]:
        return most_held(SCHEDULES[name].build(ranks, microbatches, 1))

    assert held("sequential") == [1] * ranks
    assert held("gpipe") == [microbatches] * ranks
    assert held("1f1b") == [min(ranks - s, microbatches) for s in range(ranks)]
    assert held("zb-h1") == [min(ranks, microbatches)] * ranks


@pytest.mark.parametrize("ranks", range(2, 7))
@pytest.mark.parametrize("microbatches", range(2, 13))
def test_zb_h1_idles_less_than_1f1b(ranks: int, microbatches: int) -> None:
    shares = {n: idle_share(SCHEDULES[n].build(ranks, microbatches, 1)) for n in ("zb-h1", "1f1b")}
    assert shares["zb-h1"] < shares["1f1b"]


def test_schedules_are_found_by_name() -> None:
    assert find_schedule("1f1b").name == "1f1b"
    with pytest.raises(ArgumentError, match="schedule='zigzag' does not exist.*'1f1b'"):
        find_schedule("zigzag")


def test_stages_on_a_rank() -> None:
    assert find_schedule("interleaved").stages_on_a_rank(None) == 2
    assert find_schedule("interleaved").stages_on_a_rank(3) == 3
    assert find_schedule("1f1b").stages_on_a_rank(None) == 1
    with pytest.raises(ArgumentError, match="'1f1b' has one stage a rank, not stages_per_rank=2"):
        find_schedule("1f1b").stages_on_a_rank(2)
    with pytest.raises(ArgumentError, match="stages_per_rank=0 must be an integer ≥ 1"):
        find_schedule("interleaved").stages_on_a_rank(0)


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "zb-h1", "sequential"])
def test_how_long_unequal_stages_take(name: str) -> None:
    """Of one process 4 · 12; 1F1B has the second stage done whenever the first can go on."""
    found = duration(find_schedule(name).build(2, 4, 1), [9.0, 3.0])
    expected = {"1f1b": 36, "gpipe": 39, "zb-h1": 36, "sequential": 48}
    assert found == pytest.approx(expected[name])
