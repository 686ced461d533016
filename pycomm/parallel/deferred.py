"""Backward in two halves: to the inputs at once, to the weights of linear layers later."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Later = dict[torch.Tensor, list[Callable[[], torch.Tensor]]]
"""For each parameter what computes the gradients that it has to get."""


class DeferredWeights(TorchFunctionMode):
    """Makes linear layers and convolutions that run in it leave their weights' gradients for later.

    In it, `linear` and `conv1d` to `conv3d` of a leaf weight compute what they always do, but
    backward only passes the gradient on to their input, and keeps what the weight needs. Everything
    else computes its gradients in `backward`; nothing reaches a parameter's `grad` before `finish`,
    so its hooks are called once. Source: Qi et al., Zero Bubble Pipeline Parallelism (2023).

    Args:
        parameters: those that are trained.
    """

    AT_ONCE_BYTES = 1 << 18
    """Gradients are added to the parameters' when so many bytes are there: still in the caches."""

    def __init__(self, parameters: Sequence[torch.Tensor]):
        super().__init__()
        self._parameters = list(parameters)
        self._later: Later = defaultdict(list)
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
        ready: dict[torch.Tensor, torch.Tensor] = {}
        for parameter, now in zip(self._parameters, self._now):
            with torch.no_grad():
                later = [compute() for compute in self._later.pop(parameter, [])]
                parts = [*([] if now is None else [now]), *later]
                if parts:
                    ready[parameter] = sum(parts[1:], parts[0])
            if sum(gradient.nbytes for gradient in ready.values()) > self.AT_ONCE_BYTES:
                _accumulate(ready)
        _accumulate(ready)
        self._now = []


def _accumulate(ready: dict[torch.Tensor, torch.Tensor]) -> None:
    """Add gradients to the parameters' `grad`, as backward does, and forget them."""
    if ready:
        torch.autograd.backward(list(ready), list(ready.values()))
        ready.clear()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, later: Later, dtype: Any, x: Any, weight: Any, bias: Any) -> torch.Tensor:
        ctx.later, ctx.dtype, ctx.weight, ctx.bias = later, dtype, weight, bias
        ctx.save_for_backward(x)
        return functional.linear(x, *_as(dtype, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        (x,), weight, bias, dtype = ctx.saved_tensors, ctx.weight, ctx.bias, ctx.dtype

        rows = gradient.reshape(-1, gradient.shape[-1])
        ctx.later[weight].append(lambda: (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype))
        if bias is not None and bias.requires_grad:
            ctx.later[bias].append(lambda: rows.sum(0).to(bias.dtype))
        back = gradient @ _as(dtype, weight)[0] if ctx.needs_input_grad[2] else None
        return None, None, back, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, later: Later, dtype: Any, x: Any, weight: Any, bias: Any, *how: Any
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

        ctx.later[weight].append(lambda: halves(False, True, False)[1].to(weight.dtype))
        if bias is not None and bias.requires_grad:
            ctx.later[bias].append(lambda: halves(False, False, True)[2].to(bias.dtype))
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
