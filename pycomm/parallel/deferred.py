"""Backward in two halves: to the inputs at once, to the weights of linear layers later."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pycomm.parallel.deferrable import CALLS, Call, Contribution, add

Layers = list[tuple[nn.Module, str, type[Call]]]
"""Layers, the method that does their work, and the call that can stand for it."""

Run = Callable[[nn.Module, type[Call], torch.Tensor], torch.Tensor]
"""Does a layer's work."""


def deferrable_layers(module: nn.Module) -> Layers:
    """Return the layers whose weights' gradients can come later."""
    return [
        (layer, name, CALLS[method])
        for layer in module.modules()
        for name in ("forward", "product")
        if name not in vars(layer) and (method := getattr(type(layer), name, None)) in CALLS
    ]


@dataclass
class _Kept:
    """What a layer's weights need of one of its calls.

    Attributes:
        call: of the layer.
        x: its input; None until it has been computed again.
        version: of x when the layer saw it.
        gradient: None until backward has come to it.
    """

    call: Call
    x: Any
    version: int
    gradient: Any = None


class DeferredWeights:
    """A forward and a backward pass in which linear layers leave their weights for later.

    In `forward`, layers that have a Call (`nn.Linear`, `nn.Conv1d` to `nn.Conv3d`) compute what
    they always do, but backward only passes the gradient on to their input, and keeps what the
    weight needs. A layer whose input needs no gradient has nothing to pass on and does not wait.
    Source: Qi et al., Zero Bubble Pipeline Parallelism (2023).

    Args:
        layers: see `deferrable_layers`.
        parameters: those that are trained.
        recomputes: inputs of layers are not kept, but come in `again` before backward needs them.
    """

    AT_ONCE_BYTES = 1 << 18
    """Gradients are added to the parameters' when so many bytes are there: still in the caches."""

    def __init__(
        self, layers: Layers, parameters: Sequence[torch.Tensor], recomputes: bool = False
    ):
        self._layers, self._parameters = layers, list(parameters)
        self._recomputes = recomputes
        self._without_x: list[_Kept] = []
        self._complete: list[_Kept] = []
        self._now: list[torch.Tensor | None] = []

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Be around the forward pass."""
        with _running(self._layers, self._first):
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Be around the same pass once more, made only to have again what backward needs."""
        calls = iter(self._without_x)

        def once_more(layer: nn.Module, call: type[Call], x: torch.Tensor) -> torch.Tensor:
            kept = next(calls)
            kept.x, kept.version = x.detach(), x._version
            return kept.call.run(x)[1]

        with _running(self._layers, once_more):
            yield

    def backward(
        self,
        roots: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        inputs: Sequence[torch.Tensor],
        last: bool,
    ) -> None:
        """Send the gradients of `roots` back as far as `inputs`, leaves that require gradients.

        What does not wait is added to the parameters' `grad` now. With `last` all is added in
        `finish`, so that hooks of parameters are then called once, with what is final.
        """
        with self.forward():  # for the model's own checkpoints
            if not last:
                torch.autograd.backward(roots, gradients)
            elif leaves := [*self._parameters, *inputs]:
                found = torch.autograd.grad(roots, leaves, gradients, allow_unused=True)
                self._now = list(found[: len(self._parameters)])

    def finish(self) -> None:
        """Add the gradients of the weights to the parameters' `grad`, and call their hooks."""
        later, ready = self._later(), dict[torch.Tensor, torch.Tensor]()
        for parameter in filter(later.__contains__, self._parameters):
            grad = parameter.grad
            if grad is not None and grad.layout == torch.strided:
                _sum(later.pop(parameter), grad)
                _call_hooks(parameter)
                continue
            ready[parameter] = _sum(later.pop(parameter))
            if sum(gradient.nbytes for gradient in ready.values()) > self.AT_ONCE_BYTES:
                _accumulate(ready)
        _accumulate(ready)

    def _first(self, layer: nn.Module, call: type[Call], x: torch.Tensor) -> torch.Tensor:
        kept = _Kept(call(layer), None if self._recomputes else x.detach(), x._version)
        if self._recomputes:
            self._without_x.append(kept)
        watched, y = kept.call.run(x)
        watched.register_hook(partial(self._take, kept))
        return y

    def _take(self, kept: _Kept, gradient: torch.Tensor) -> None:
        """Keep what backward brings, unless the other factor is no longer what it was."""
        if kept.x is not None and kept.x._version != kept.version:
            raise RuntimeError(
                f"the input of a layer with a weight of shape {tuple(kept.call.weight.shape)} has "
                f"been modified by an inplace operation since, and its gradient needs it as it was"
            )
        kept.gradient = gradient
        self._complete.append(kept)

    def _later(self) -> dict[torch.Tensor, list[Contribution]]:
        """Return for each parameter what computes the gradients that it is to get."""
        later = defaultdict[torch.Tensor, list[Contribution]](list)
        for kept in self._complete:
            for parameter, part in kept.call.contributions(kept.x, kept.gradient):
                later[parameter].append(part)
        for parameter, now in zip(self._parameters, self._now):
            if now is not None:  # last: it may be the gradient of others, too, and must stay
                later[parameter].append(partial(add, now))
        self._without_x, self._complete, self._now = [], [], []
        return later


@contextmanager
def _running(layers: Layers, run: Run) -> Iterator[None]:
    """Have `run` do the work of layers."""
    before = [vars(layer).get(name) for layer, name, _ in layers]
    for layer, name, call in layers:
        vars(layer)[name] = partial(_work, run, layer, name, call)
    try:
        yield
    finally:
        for (layer, name, _), method in zip(layers, before):
            if method is None:
                del vars(layer)[name]
            else:
                vars(layer)[name] = method


def _work(
    run: Run, layer: nn.Module, name: str, call: type[Call], input: torch.Tensor
) -> torch.Tensor:
    """Do a layer's work by `run` where a call can stand for it, else as the layer does."""
    if torch.is_grad_enabled() and call.takes(layer, input):
        return run(layer, call, _cast(input))
    return getattr(type(layer), name)(layer, input)


def _cast(x: torch.Tensor) -> torch.Tensor:
    """Return what autocast gives to a layer, which takes less memory to keep."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


@torch.no_grad()
def _sum(parts: Iterable[Contribution], total: torch.Tensor | None = None) -> torch.Tensor:
    """Return the sum of the parts, in `total` if there is one."""
    for part in parts:
        total = part(total)
    return cast(torch.Tensor, total)


def _call_hooks(parameter: torch.Tensor) -> None:
    """Call those that autograd calls when it has added to `grad`."""
    for hook in (parameter._post_accumulate_grad_hooks or {}).values():
        hook(parameter)


def _accumulate(ready: dict[torch.Tensor, torch.Tensor]) -> None:
    """Add gradients to the parameters' `grad`, as backward does, and forget them."""
    if ready:
        torch.autograd.backward(list(ready), list(ready.values()))
        ready.clear()
