"""Learning rates over the steps of a run, also of one that is resumed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import pycomm
from pycomm.errors import ArgumentError
from pycomm.trainers.rates import find_rates


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8535533905932737, 0.5, 0.14644660940672627, 0]),
    ],
)
def test_the_factor_of_each_step(name: str, expected: list[float]) -> None:
    rates = find_rates(name, 2, 6)
    assert [rates(step) for step in range(7)] == pytest.approx(expected, abs=1e-15)


def test_no_warmup() -> None:
    assert [find_rates("linear", 0, 2)(step) for step in range(3)] == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("name", "warmup", "match"),
    [
        ("steep", 0, "'steep' is none of constant, linear, cosine"),
        ("cosine", 9, "warmup=9 must be"),
    ],
)
def test_bad_schedules(name: str, warmup: int, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        find_rates(name, warmup, 8)


def make() -> pycomm.DataParallelTrainer:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def sgd(named):
        weights, biases = ([p for n, p in named if n == which] for which in ("weight", "bias"))
        return torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.5}], lr=0.1)

    rates = find_rates("linear", 0, 8)
    return pycomm.DataParallelTrainer(model, sgd, cross_entropy, pycomm.init(), rates=rates)


def test_groups_keep_their_ratio_and_a_resumed_run_goes_on(tmp_path) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(20, 3, generator=generator)
    data = TensorDataset(x, torch.randint(0, 2, (20,), generator=generator))
    whole, resumed = make(), make()
    whole.fit(data, steps=6, batch_size=6, progress=False)
    make().fit(data, steps=3, batch_size=6, checkpoint=tmp_path, progress=False)
    resumed.fit(data, steps=6, batch_size=6, checkpoint=tmp_path, progress=False)
    rates = [group["lr"] for group in whole.optimizer.param_groups]
    assert rates == pytest.approx([0.1 * 3 / 8, 0.5 * 3 / 8])
    for trainer in (whole, resumed):
        assert [group["lr"] for group in trainer.optimizer.param_groups] == rates
    assert torch.equal(whole.module.weight, resumed.module.weight)
