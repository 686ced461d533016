"""Backward in two halves: to the inputs at once, to the weights of linear layers later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Gradients = dict[torch.Tensor, torch.Tensor]
"""Of parameters."""


class DeferredWeights(TorchFunctionMode):
    """Makes linear layers and convolutions that run in it leave their weights' gradients for later.

    In it, `linear` and `conv1d` to `conv3d` of a leaf weight compute what they always do, but
    backward only passes the gradient on to their input, and keeps what the weight needs. Everything
    else computes its gradients in `backward`; nothing reaches a parameter's `grad` before `finish`,
    so its hooks are called once. Source: Qi et al., Zero Bubble Pipeline Parallelism (2023).

    Args:
        parameters: those that are trained.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]):
        super().__init__()
        self._parameters = list(parameters)
        self._later: list[Callable[[], Gradients]] = []
        self._now: list[torch.Tensor | None] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run `func`, or what stands for it."""
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        if replacement is not None and torch.is_grad_enabled():
            given = replacement[1](*args, **kwargs)
            if given is not None:
                return replacement[0].apply(self._later, *_cast(given))
        return func(*args, **kwargs)

    def backward(
        self,
        roots: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        inputs: Sequence[torch.Tensor],
    ) -> None:
        """Send the gradients of `roots` back as far as `inputs`, leaves that require gradients."""
        leaves = [*self._parameters, *inputs]
        if leaves:
            found = torch.autograd.grad(roots, leaves, gradients, allow_unused=True)
            self._now = list(found[: len(self._parameters)])

    def finish(self) -> None:
        """Add the gradients of the weights to the parameters' `grad`."""
        total = {p: g for p, g in zip(self._parameters, self._now) if g is not None}
        with torch.no_grad():
            for compute in self._later:
                for parameter, gradient in compute().items():
                    before = total.get(parameter)
                    total[parameter] = gradient if before is None else before + gradient
        self._later, self._now = [], []
        if total:
            torch.autograd.backward(list(total), list(total.values()))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, later: list, dtype: Any, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        ctx.later, ctx.dtype, ctx.weight, ctx.bias = later, dtype, weight, bias
        ctx.save_for_backward(x)
        return functional.linear(x, *_as(dtype, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        (x,), weight, bias, dtype = ctx.saved_tensors, ctx.weight, ctx.bias, ctx.dtype

        def later() -> Gradients:
            rows = gradient.reshape(-1, gradient.shape[-1])
            found = {weight: (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype)}
            if bias is not None and bias.requires_grad:
                found[bias] = rows.sum(0).to(bias.dtype)
            return found

        ctx.later.append(later)
        back = gradient @ _as(dtype, weight)[0] if ctx.needs_input_grad[2] else None
        return None, None, back, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, later: list, dtype: Any, x: Any, weight: Any, bias: Any, *how: Any
    ) -> torch.Tensor:
        ctx.later, ctx.dtype, ctx.weight, ctx.bias, ctx.how = later, dtype, weight, bias, how
        ctx.save_for_backward(x)
        return torch.convolution(x, *_as(dtype, weight, bias), *how)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        (x,), weight, bias, dtype = ctx.saved_tensors, ctx.weight, ctx.bias, ctx.dtype
        how = ctx.how
        sizes = None if bias is None else list(bias.shape)

        def halves(*wanted: bool) -> tuple:
            kernel = _as(dtype, weight)[0]
            return torch.ops.aten.convolution_backward(gradient, x, kernel, sizes, *how, wanted)

        def later() -> Gradients:
            learns = bias is not None and bias.requires_grad
            found = zip((weight, bias), halves(False, True, learns)[1:])
            return {p: g.to(p.dtype) for p, g in found if g is not None}

        ctx.later.append(later)
        back = halves(True, False, False)[0] if ctx.needs_input_grad[2] else None
        return None, None, back, *[None] * (2 + len(how))


def _linear(input: Any, weight: Any, bias: Any = None) -> tuple | None:
    return (input, weight, bias) if _is_leaf(weight, bias) else None


def _convolution(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple | None:
    dimensions = weight.dim() - 2
    if isinstance(padding, str) or not _is_leaf(weight, bias) or input.dim() != weight.dim():
        return None

    def each(number: Any) -> list[int]:
        numbers = [number] if isinstance(number, int) else list(number)
        return numbers * dimensions if len(numbers) == 1 else numbers

    how = each(stride), each(padding), each(dilation), False, [0] * dimensions, groups
    return input, weight, bias, *how


_REPLACED: dict[Any, tuple[type[torch.autograd.Function], Callable[..., tuple | None]]] = {
    functional.linear: (_Linear, _linear),
    functional.conv1d: (_Convolution, _convolution),
    functional.conv2d: (_Convolution, _convolution),
    functional.conv3d: (_Convolution, _convolution),
}
"""By function: what stands for it, and what makes its arguments, or None where nothing can."""


def _is_leaf(weight: Any, bias: Any) -> bool:
    """Say whether gradients of a weight and a bias can be added to their `grad` directly."""
    plain = weight.requires_grad and weight.is_leaf
    return plain and (bias is None or bias.is_leaf)


def _cast(given: tuple) -> tuple:
    """Return the narrow dtype that autocast asks for, or None, and the arguments in it."""
    x, *rest = given
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None, x, *rest
    dtype = torch.get_autocast_dtype(kind)
    return dtype, x.to(dtype), *rest


def _as(dtype: torch.dtype | None, *tensors: torch.Tensor | None) -> list[Any]:
    return [t if t is None or dtype is None else t.to(dtype) for t in tensors]
