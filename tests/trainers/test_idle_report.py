"""What a report says of a pipeline's idle time."""

from __future__ import annotations

import pytest
from torch import nn

from pycomm.parallel.idle import Times
from pycomm.parallel.schedules.actions import Schedule
from pycomm.parallel.schedules.registry import find_schedule
from pycomm.parallel.splitting.split import Split, split
from pycomm.trainers.better_cut import find_better_cut
from pycomm.trainers.idle_report import idle_remarks, pipeline_row, stage_seconds


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


def test_a_stage_on_several_ranks_is_their_mean() -> None:
    spent = [times(0, 6.0, 0.75), times(1, 1.0, 5.75), times(0, 4.0, 2.75), times(1, 1.0, 5.75)]
    rows = [pipeline_row(each, 0.1) for each in spent]
    assert stage_seconds(rows) == {0: 5.0, 1: 1.0}
    assert remarks(*spent)[1].startswith("stage 0 (ranks 0, 2) is the slowest: 83% of all")


def layers(*costs: float) -> Split:
    return split(nn.Sequential(*(nn.Linear(1, 1) for _ in costs)), 2, costs)


def schedule(name: str) -> Schedule:
    return find_schedule(name).build(2, 3, 1)


class Skipping(nn.Module):
    """Changes in place what it uses again at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(1, 1) for _ in range(4))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.a(x)
        return self.d(self.c(self.b(self.act(x)))) + x


@pytest.mark.parametrize(("in_place", "found"), [(True, None), (False, ["act", "b"])])
def test_a_cut_that_would_hide_a_change_is_not_proposed(in_place: bool, found) -> None:
    model = Skipping()
    model.act.inplace = in_place
    given = split(model, 3, [1, 1, 1, 1, 1], cuts=["b", "d"])
    better = find_better_cut(given, [8.0, 1.0, 1.0], find_schedule("1f1b").build(3, 4, 1))
    assert (better and better["cuts"]) == found


def test_a_better_cut_is_measured_times_cut_anew() -> None:
    better = find_better_cut(layers(1, 1, 1, 1, 9), [8.0, 2.0], schedule("1f1b"))
    assert better is not None and better["cuts"] == ["3"]
    assert better["stages_s"] == pytest.approx({0: 6.0, 1: 4.0})
    assert better["speedup"] > 1


def test_a_gain_that_is_too_small_is_not_said() -> None:
    assert find_better_cut(layers(1, 1, 1, 1, 9), [8.0, 2.0], schedule("sequential")) is None
    assert find_better_cut(layers(1, 1, 1, 1), [5.0, 5.0], schedule("1f1b")) is None
    assert find_better_cut(layers(1, 1), [0.0, 0.0], schedule("1f1b")) is None
