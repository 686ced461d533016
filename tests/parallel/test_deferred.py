"""Gradients of weights that come later are those that would have come at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pycomm.parallel.deferred import DeferredWeights, deferrable_layers


def both(
    model: nn.Module, x: torch.Tensor, waiting: int, autocast: bool = False, last: bool = False
):
    """Return the gradients of input and parameters, of autograd and in two halves.

    Between them `waiting` weights must have none.
    """
    x = x.requires_grad_()
    reference = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = reference(x)
    seed = torch.randn(y.shape).to(y.dtype)
    y.backward(seed)
    expected, x.grad = [x.grad, *(p.grad for p in reference.parameters())], None
    trained = [p for p in model.parameters() if p.requires_grad]
    deferred, received = DeferredWeights(deferrable_layers(model), trained), []
    x.register_hook(received.append)
    with deferred.forward(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    deferred.backward([y], [seed], [x], last)
    assert sum(p.dim() > 1 and p.grad is None for p in trained) == waiting
    deferred.finish()
    return expected, [received[0], *(p.grad for p in model.parameters())]


# What makes a model, the shape of its input, and how many weights wait.
MODELS = {
    "linear": (lambda: nn.Linear(5, 4), (2, 3, 5), 1),
    "no bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5), 1),
    "one sample": (lambda: nn.Linear(5, 4), (5,), 1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7), 1),
    "conv2d": (lambda: nn.Conv2d(2, 3, (2, 3), dilation=(1, 2), bias=False), (2, 2, 6, 7), 1),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3), 1),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5), 0),
    "mixed": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3, 5), 2),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), (3, 2, 4), 2),
    "normed": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), (3, 5), 0),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_are_those_of_autograd(name: str, last: bool) -> None:
    torch.manual_seed(0)
    build, shape, waiting = MODELS[name]
    model = build().double()
    waiting = sum(p.dim() > 1 for p in model.parameters()) if last else waiting
    expected, got = both(model, torch.randn(shape).double(), waiting, last=last)
    for one, other in zip(expected, got):
        assert (one - other).norm() <= 1e-12 * max(one.norm(), 1e-3)


@pytest.mark.parametrize("name", ["linear", "conv2d", "mixed"])
def test_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    build, shape, waiting = MODELS[name]
    expected, got = both(build(), torch.randn(shape), waiting, autocast=True)
    for one, other in zip(expected, got):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 2e-2 * one.norm()


def test_under_autocast_narrow_inputs_are_kept() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        deferred = halves(model, x)
    assert [kept.x.dtype for kept in deferred._complete] == [torch.bfloat16]


def test_frozen_weights_and_biases() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    expected, got = both(model, torch.randn(2, 3).double(), 2)
    for one, other in zip(expected, got):
        if one is None:
            assert other is None
        else:
            assert (one - other).norm() <= 1e-12 * one.norm()


def halves(model: nn.Module, x: torch.Tensor, last: bool = False) -> DeferredWeights:
    """Run both passes but for the weights' half, from a seed of ones."""
    deferred = DeferredWeights(deferrable_layers(model), list(model.parameters()))
    with deferred.forward():
        y = model(x)
    deferred.backward([y], [torch.ones_like(y)], [x], last)
    return deferred


def test_linear_weights_wait_and_nothing_else() -> None:
    """A layer's weight is not even computed before it is asked for."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    deferred = halves(model, torch.ones(1, 3, requires_grad=True))
    assert model[0].weight.grad is model[0].bias.grad is None
    assert model[1].weight.grad is not None
    model[0].weight.data.zero_()
    deferred.finish()
    assert model[0].weight.grad.shape == (2, 3)


def test_hooks_are_called_once_with_the_whole_gradient() -> None:
    """That of a weight which a linear layer and another function use has two parts."""
    layer, seen = nn.Linear(2, 2, bias=False).double(), []
    model = nn.Sequential(layer, Squared(layer.weight))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    x = torch.randn(3, 2).double().requires_grad_()
    halves(model, x, last=True).finish()
    halves(model, x, last=True).finish()
    model(x).sum().backward()
    assert len(seen) == 3
    for times, gradient in enumerate(seen, 1):
        assert (gradient - times * seen[0]).norm() <= 1e-12 * gradient.norm()


class Squared(nn.Module):
    """Adds a number that learns from a weight."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.square().sum()


def test_the_output_may_be_changed_in_place() -> None:
    """The gradient that counts is the one before the change, also through a view."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    expected, got = both(model, torch.randn(2, 3, 4).double(), 2)
    for one, other in zip(expected, got):
        assert (one - other).norm() <= 1e-12 * one.norm()


def test_a_changed_input_is_an_error() -> None:
    """As autograd itself says it."""

    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.exp()
            y = self.layer(x)
            x += 1
            return y

    with pytest.raises(RuntimeError, match=r"\(3, 3\) has been modified by an inplace operation"):
        halves(Changes(), torch.randn(2, 3, requires_grad=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_the_model(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
            self.outer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(checkpoint(self.inner, x.exp(), use_reentrant=reentrant))

    torch.manual_seed(0)
    expected, got = both(Checkpointed().double(), torch.randn(5, 3).double(), 3)
    for one, other in zip(expected, got):
        assert (one - other).norm() <= 1e-12 * one.norm()


def test_recomputed_inputs() -> None:
    """Inputs of layers are not kept, but come back in the second pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3).double().requires_grad_()
    deferred = DeferredWeights(deferrable_layers(model), list(model.parameters()), recomputes=True)
    with deferred.forward():
        y = model(x)
    assert [kept.x for kept in deferred._without_x] == [None, None]
    with deferred.again():
        model(x)
    deferred.backward([y], [torch.ones_like(y)], [x], last=False)
    deferred.finish()
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    for one, parameter in zip(expected, model.parameters()):
        assert (one - parameter.grad).norm() <= 1e-12 * one.norm()
