"""Gradients of weights that come later are those that would have come at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pycomm.parallel.deferred import DeferredWeights


def both(model: nn.Module, x: torch.Tensor, autocast: bool = False):
    """Return the gradients of input and parameters, of autograd and in two halves."""
    x = x.requires_grad_()
    reference = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = reference(x)
    seed = torch.randn(y.shape).to(y.dtype)
    y.backward(seed)
    expected, x.grad = [x.grad, *(p.grad for p in reference.parameters())], None
    trained = [p for p in model.parameters() if p.requires_grad]
    deferred, received = DeferredWeights(trained), []
    x.register_hook(received.append)
    with deferred, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    deferred.backward([y], [seed], [x])
    assert all(p.grad is None for p in model.parameters())
    deferred.finish()
    return expected, [received[0], *(p.grad for p in model.parameters())]


MODELS = {
    "linear": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "no bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "one sample": (lambda: nn.Linear(5, 4), (5,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (2, 3), dilation=(1, 2), bias=False), (2, 2, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5)),
    "mixed": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), (3, 2, 4)),
    "normed": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), (3, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_are_those_of_autograd(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    expected, got = both(build().double(), torch.randn(shape).double())
    for one, other in zip(expected, got):
        assert (one - other).norm() <= 1e-12 * max(one.norm(), 1e-3)


@pytest.mark.parametrize("name", ["linear", "conv2d", "mixed"])
def test_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    expected, got = both(build(), torch.randn(shape), autocast=True)
    for one, other in zip(expected, got):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 2e-2 * one.norm()


def test_frozen_weights_and_biases() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    expected, got = both(model, torch.randn(2, 3).double())
    for one, other in zip(expected, got):
        if one is None:
            assert other is None
        else:
            assert (one - other).norm() <= 1e-12 * one.norm()


def test_linear_weights_wait_and_nothing_else() -> None:
    """A layer's weight is not even computed before it is asked for."""
    model = nn.Linear(3, 2)
    deferred = DeferredWeights(list(model.parameters()))
    with deferred:
        y = model(torch.ones(1, 3))
    deferred.backward([y.sum()], [None], [])
    assert list(deferred._later) == [model.weight, model.bias]
    assert deferred._now == [None, None]
    deferred.finish()
    assert torch.equal(model.weight.grad, torch.ones(2, 3))
