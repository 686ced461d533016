"""The stage executor on one rank: microbatches add up, evaluation leaves no gradients."""

from __future__ import annotations

import torch
from torch import nn

import pycomm
from pycomm.parallel.pipeline import Stage
from pycomm.parallel.schedule import Forward, fill_drain


def test_microbatches_add_up_to_the_gradient_of_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x = torch.randn(5, 3).double()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    stage = Stage(model, pycomm.init())
    cuts = torch.tensor_split(x, 3)
    stage.run(fill_drain(1, 3)[0], cuts, lambda m, y: y.square().sum())
    for p, gradient in zip(model.parameters(), expected):
        assert (p.grad - gradient).norm() <= 1e-12 * gradient.norm()


def test_a_microbatch_without_loss_adds_nothing() -> None:
    model = nn.Linear(3, 2)
    stage = Stage(model, pycomm.init())
    stage.run(fill_drain(1, 1)[0], [torch.ones(1, 3)], lambda m, y: None)
    assert model.weight.grad is None


def test_forward_only() -> None:
    model, outputs = nn.Linear(3, 2), {}
    stage = Stage(model, pycomm.init())
    with torch.no_grad():
        stage.run([Forward(0, 0), None, Forward(0, 1)], [torch.ones(1, 3)] * 2, outputs.__setitem__)
    assert list(outputs) == [0, 1]
    assert torch.equal(outputs[0], model(torch.ones(1, 3)))
