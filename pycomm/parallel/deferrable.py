"""Layers that can compute the gradients of their weights apart from that of their input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

Contribution = Callable[[torch.Tensor | None], torch.Tensor]
"""Returns a gradient, or a sum of gradients to which it has added one in place."""

Contributions = Iterator[tuple[torch.Tensor, Contribution]]
"""Parameters, and what computes the gradients that they get."""

Method = TypeVar("Method", bound=Callable[..., torch.Tensor])


class Call(ABC):
    """A call of a layer that autograd is to differentiate by its input only.

    Args:
        layer: has a `weight` and a `bias`, which may be None.
    """

    def __init__(self, layer: Any):
        self.weight: torch.Tensor = layer.weight
        self.bias: torch.Tensor | None = layer.bias

    @classmethod
    def takes(cls, layer: Any, x: torch.Tensor) -> bool:
        """Say whether this can stand for what the layer does itself with this input."""
        leaves = layer.weight.is_leaf and (layer.bias is None or layer.bias.is_leaf)
        return leaves and layer.weight.requires_grad and x.requires_grad

    @abstractmethod
    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a tensor (no view) whose gradient `contributions` wants, and the output."""

    @abstractmethod
    def contributions(self, x: torch.Tensor, gradient: torch.Tensor) -> Contributions:
        """Yield what the parameters get, to be computed later, of an input and that gradient."""

    def _constants(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.weight.detach(), None if self.bias is None else self.bias.detach()


class LinearCall(Call):
    """y = x·Wᵀ + b, where all dimensions of x but the last are rows."""

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of y, and y."""
        rows = functional.linear(x.reshape(-1, x.shape[-1]), *self._constants())
        return rows, rows.view(*x.shape[:-1], rows.shape[-1])

    def contributions(self, x: torch.Tensor, gradient: torch.Tensor) -> Contributions:
        """Yield gᵀ·x and Σ g."""
        x = x.reshape(-1, x.shape[-1]).to(gradient.dtype)
        yield self.weight, partial(_add_product, gradient.t(), x, self.weight.dtype)
        if (bias := self.bias) is not None and bias.requires_grad:
            yield bias, lambda total: add(gradient.sum(0).to(bias.dtype), total)


class LinearCallWithoutBias(LinearCall):
    """y = x·Wᵀ, of a layer that adds its bias itself."""

    def __init__(self, layer: Any):
        super().__init__(layer)
        self.bias = None


class ConvolutionCall(Call):
    """A convolution of a batch, padded by zeros."""

    def __init__(self, layer: Any):
        super().__init__(layer)
        self._how = layer.stride, layer.padding, layer.dilation
        self._groups = layer.groups

    @classmethod
    def takes(cls, layer: Any, x: torch.Tensor) -> bool:
        """Say so where padding is by numbers, and x has dimension 0 for samples."""
        plain = not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
        return super().takes(layer, x) and plain and x.dim() == layer.weight.dim()

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, twice."""
        convolution = _CONVOLUTIONS[x.dim() - 2]
        y = convolution(x, *self._constants(), *self._how, self._groups)
        return y, y

    def contributions(self, x: torch.Tensor, gradient: torch.Tensor) -> Contributions:
        """Yield the gradients of the weight and the bias."""
        weight, x = self.weight.detach().to(gradient.dtype), x.to(gradient.dtype)
        zeros = [0] * len(self._how[0])
        how = *self._how, False, zeros, self._groups

        def of(place: int, parameter: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
            shape, wanted = list(weight.shape[:1]), [place == p for p in range(3)]
            found = torch.ops.aten.convolution_backward(gradient, x, weight, shape, *how, wanted)
            return add(found[place].to(parameter.dtype), total)

        yield self.weight, partial(of, 1, self.weight)
        if (bias := self.bias) is not None and bias.requires_grad:
            yield bias, partial(of, 2, bias)


_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}

CALLS: dict[Callable[..., torch.Tensor], type[Call]] = {
    nn.Linear.forward: LinearCall,
    nn.Conv1d.forward: ConvolutionCall,
    nn.Conv2d.forward: ConvolutionCall,
    nn.Conv3d.forward: ConvolutionCall,
}
"""By the method of a layer, `forward` or `product`, the call that can stand for it."""


def computed_by(call: type[Call]) -> Callable[[Method], Method]:
    """Register the method `forward` or `product` of a class of layers."""

    def register(method: Method) -> Method:
        CALLS[method] = call
        return method

    return register


def add(gradient: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
    """Return the sum, in `total` if there is one."""
    return gradient if total is None else total.add_(gradient)


def _add_product(
    a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, total: torch.Tensor | None
) -> torch.Tensor:
    """Add a·b without a pass over memory for the sum."""
    if total is not None and total.dtype == a.dtype:
        return total.addmm_(a, b)
    return add((a @ b).to(dtype), total)
