"""Layers are measured one by one, and the model stays as it was."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from pycomm.parallel.profile import profile
from pycomm.parallel.splitting.balance import Sample
from pycomm.parallel.splitting.reading import read
from pycomm.parallel.splitting.split import split
from tests.parallel.split_models import WORDS, Skips, TiedLanguageModel


class Slow(nn.Module):
    """Takes as long as it is told, in forward, and twice that in backward."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return _SlowBackward.apply(x, 2 * self.seconds)


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x + 1

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


def test_times_are_those_of_the_layers() -> None:
    layers = [nn.Linear(4, 4), Slow(0.004), Slow(0.001), nn.Linear(4, 4)]
    measured = profile(read(layers), torch.randn(2, 4))
    assert 0.004 <= measured[1].forward_s < 0.006
    assert 0.008 <= measured[1].backward_s < 0.011
    assert 0.003 <= measured[2].seconds < 0.006
    made = split(layers, 2, "time", sample=Sample(torch.randn(2, 4)))
    assert made.cuts == ["2"]
    assert "balanced by measured time" in made.explain() and " ms" in made.explain()


def test_layers_may_change_what_they_take() -> None:
    x = torch.randn(2, 4)
    before = x.clone()
    measured = profile(read([nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True)]), x)
    assert all(m.backward_s > 0 for m in measured)
    assert torch.equal(x, before)


def test_activations_are_what_backward_needs() -> None:
    x = torch.randn(10, 100)
    measured = profile(read([nn.Linear(100, 50), nn.Tanh(), nn.Identity()]), x, repetitions=1)
    assert [m.activation_bytes for m in measured] == [10 * 100 * 4, 10 * 50 * 4, 0]


def test_balanced_by_memory() -> None:
    layers = [nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)]
    sample = Sample(torch.randn(1, 10), optimizer=lambda named: torch.optim.SGD(named, lr=1))
    made = split(layers, 2, "memory", sample=sample)
    assert made.costs == (110 * 8 + 40,) * 3
    several = Sample(torch.randn(100, 10), 2, lambda named: torch.optim.AdamW(named))
    made = split(layers, 2, "memory", sample=several)
    assert made.costs == (110 * 16 + 2 * 4 + 2 * 4000,) * 3
    assert made.unit == "bytes"
    assert split(layers, 2, "memory").costs == (110 * 16 + 2 * 4,) * 3


@pytest.mark.parametrize("deferred", [False, True])
def test_any_model_is_measured_and_stays_as_it_was(deferred: bool) -> None:
    with torch.device("meta" if deferred else "cpu"):
        model = TiedLanguageModel(p=0.1)
    before = copy.deepcopy(model.state_dict())
    flow = read(model)
    measured = profile(flow, torch.randint(0, WORDS, (2, 5)), repetitions=1)
    assert len(measured) == len(flow.layers)
    assert all(m.forward_s > 0 for m in measured)
    assert all(p.grad is None and p.is_meta == deferred for p in model.parameters())
    if not deferred:
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_several_inputs_and_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    profile(read(model), torch.randn(4, 3, generator=torch.Generator()), repetitions=2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    x = torch.randn(4, 6, generator=torch.Generator()), torch.ones(4, 1)
    assert len(profile(read(Skips()), x, repetitions=1)) == 8
    torch.manual_seed(0)
    state = torch.get_rng_state()
    profile(read([nn.Dropout()]), torch.ones(3), repetitions=1)
    assert torch.equal(torch.get_rng_state(), state)
