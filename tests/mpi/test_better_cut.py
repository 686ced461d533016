"""The cut that a report proposes is taken, and gains what was predicted."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import pycomm
from pycomm.parallel.parts import INPUT, OUTPUT, Part
from tests.training import one_thread as one_thread
from tests.training import sgd

LAYERS, MICROBATCHES, STEPS = 8, 4, 2
SECONDS = 0.01
"""Of each layer, slept, so that other processes on the machine hardly change it."""


class Sleeper(nn.Module):
    def __init__(self, layers: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.layers = layers

    def forward(self, x):
        time.sleep(SECONDS * self.layers)
        return x * self.weight


@pytest.fixture(autouse=True)
def two_ranks(comm):
    if comm.size != 2:
        pytest.skip("for two ranks")


def train(comm, model, **options) -> tuple[pycomm.ModelParallelTrainer, list[dict]]:
    trainer = pycomm.ModelParallelTrainer(model, sgd, mse_loss, comm, MICROBATCHES, **options)
    x = torch.ones(MICROBATCHES, 2)
    for _ in range(STEPS):
        trainer.step(x, x)
    return trainer, trainer.report()


def equal_layers() -> nn.Sequential:
    return nn.Sequential(*(Sleeper() for _ in range(LAYERS)))


def slower(rows: list[dict]) -> tuple[float, float]:
    """Return the seconds of the stage that computes longest, and its share of all."""
    seconds = [s for row in rows for s in row["stages_s"].values()]
    return max(seconds), max(seconds) / sum(seconds)


def test_a_better_cut_gains_what_the_report_predicts(comm) -> None:
    wrong, before = train(comm, equal_layers(), balance=[1, 1, 1, 1, 1, 1, 1, 9])
    assert wrong.split.cuts == ["7"]
    better = before[0]["better_cut"]
    assert better == before[1]["better_cut"] and better["cuts"] == ["4"]
    assert better["speedup"] == pytest.approx(29 / 20, rel=0.1)
    _, why, advice = wrong._remarks(before)
    assert why.startswith("stage 0 (rank 0) is the slowest: 8")
    assert advice.startswith("cuts=['4'] would be 1.")
    _, after = train(comm, equal_layers(), cuts=better["cuts"])
    (long, large), (short, small) = slower(before), slower(after)
    assert large > 0.8 and small < 0.6
    assert short / long == pytest.approx(max(better["stages_s"].values()) / long, rel=0.15)
    assert after[0]["better_cut"] is None


def test_several_stages_on_a_rank(comm) -> None:
    options = {"schedule": "interleaved", "stages_per_rank": 2}
    wrong, before = train(comm, equal_layers(), balance=[1, 1, 1, 1, 1, 9, 9, 9], **options)
    assert wrong.split.cuts == ["5", "6", "7"]
    better = before[0]["better_cut"]
    assert better["cuts"] == ["2", "4", "6"] and better["speedup"] > 1.2
    _, after = train(comm, equal_layers(), cuts=better["cuts"], **options)
    assert slower(after)[0] == pytest.approx(max(better["stages_s"].values()), rel=0.15)


def test_there_is_no_better_cut_where_stages_wait_for_each_other(comm) -> None:
    costs = [1, 1, 1, 1, 1, 1, 1, 9]
    _, rows = train(comm, equal_layers(), balance=costs, schedule="sequential")
    assert rows[0]["better_cut"] is None


def test_parts_that_the_user_made_are_not_cut_anew(comm) -> None:
    parts = [Part(One(7), (INPUT,), ("x",)), Part(One(1), ("x",), (OUTPUT,))]
    trainer, rows = train(comm, parts)
    assert trainer.split is None and rows[0]["better_cut"] is None
    _, why = trainer._remarks(rows)
    assert why.startswith("stage 0 (rank 0) is the slowest: 8")


class One(Sleeper):
    def forward(self, x):
        return (super().forward(x),)
