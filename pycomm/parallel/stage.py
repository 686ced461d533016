"""A stage: runs a part of a model, forward and back, and keeps what lies between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pycomm.errors import UnsupportedError
from pycomm.parallel.deferred import DeferredWeights, deferrable_layers
from pycomm.parallel.entry import Entry
from pycomm.parallel.parts import INPUT, Part
from pycomm.parallel.traffic import Gradients
from pycomm.parallel.values import Value, describe, walk

Loss = Callable[[int, Any], torch.Tensor | None]
"""(microbatch, output) → a scalar to differentiate, or None where nothing is to be learnt."""

Context = Callable[[int], AbstractContextManager[Any]]
"""microbatch → what surrounds its forward pass and loss, such as autocast."""


@dataclass
class _Kept:
    """What lies between forward and backward of a microbatch.

    Attributes:
        roots: the tensors from which gradients go back.
        entries: by the name of the value.
        deferred: what backward leaves for later; None if nothing.
        changed: the values that were changed in place.
    """

    roots: list[torch.Tensor]
    entries: dict[str, Entry]
    deferred: DeferredWeights | None
    changed: list[str]


class Stage:
    """One part of a model, and the microbatches that it has under way.

    Attributes:
        number: of the stage.
        most_held: of how many microbatches it has kept activations at once, at most.

    Args:
        number: of the stage.
        part: what it runs.
        shared: the values that other stages take, too.
        context: makes that of a microbatch's forward pass and loss.
        recompute: keep only what the stage takes, and run forward again before backward, with the
            random numbers of the first time.
    """

    def __init__(
        self,
        number: int,
        part: Part,
        shared: frozenset[str],
        context: Context,
        recompute: bool,
    ):
        self.number, self.part = number, part
        self._shared, self._context, self._recompute = shared, context, recompute
        self._deferrable = deferrable_layers(part.module)
        self.reset()
        self.most_held = 0

    def reset(self) -> None:
        """Forget the microbatches under way."""
        self._kept: dict[int, _Kept] = {}
        self._deferred: dict[int, DeferredWeights] = {}

    def forward(
        self, microbatch: int, taken: dict[str, Any], loss: Loss | None, defer: bool
    ) -> dict[str, Value]:
        """Run the part.

        Args:
            microbatch: its number.
            taken: by name a Value, but INPUT as it is.
            loss: on the last stage, which gives nothing.
            defer: whether backward leaves gradients of weights for `weights`.

        Raises:
            UnsupportedError: the part returns something else than it says, or something that
                cannot be passed on, or changes in place what others take, too.
        """
        entries = {name: Entry(value) for name, value in taken.items() if name != INPUT}
        contents = {name: entry.content for name, entry in entries.items()}
        deferred = self._defers(defer)
        deferring = contextlib.nullcontext() if deferred is None else deferred.forward()
        with deferring, self._context(microbatch):
            given = self._call([{**taken, **contents}[name] for name in self.part.takes], deferred)
            scalar = None if loss is None else _scalar(loss(microbatch, given[0]))
        changed = [name for name, entry in entries.items() if entry.was_changed]
        self._check_changes(changed)
        names = () if loss is not None else self.part.gives
        values = {name: Value.of(content) for name, content in zip(names, given)}
        if torch.is_grad_enabled():
            roots = [t for value in values.values() for t in value.learning()]
            roots += [] if scalar is None else [scalar]
            self._kept[microbatch] = _Kept(roots, entries, deferred, changed)
            self.most_held = max(self.most_held, len(self._kept) + len(self._deferred))
        return values

    def backward(
        self, microbatch: int, gradients: Gradients | None, last: bool
    ) -> dict[str, Gradients]:
        """Send gradients back.

        Args:
            microbatch: its number.
            gradients: of what the stage gave, in that order; None on the last one.
            last: whether no microbatch comes back after this one.

        Returns:
            By name of a value that it took, the gradients of the tensors that learn.

        Raises:
            UnsupportedError: an in-place operation has changed what is needed.
        """
        kept = self._kept.pop(microbatch)
        whole = [None] * len(kept.roots)
        pairs = list(zip(kept.roots, whole if gradients is None else gradients))
        if gradients is not None:
            pairs = [(root, gradient) for root, gradient in pairs if gradient is not None]
        if pairs:
            self._differentiate(kept, [r for r, _ in pairs], [g for _, g in pairs], last)
        if kept.deferred is not None:
            self._deferred[microbatch] = kept.deferred
        return {name: entry.gradients() for name, entry in kept.entries.items()}

    def weights(self, microbatch: int) -> None:
        """Compute the gradients that `backward` has left."""
        deferred = self._deferred.pop(microbatch, None)
        if deferred is not None:
            deferred.finish()

    def _call(self, arguments: list[Any], deferred: DeferredWeights | None) -> tuple:
        if self._recompute and torch.is_grad_enabled():
            given = self._checkpointed(arguments, deferred)
        else:
            given = self.part.module(*arguments)
        names = self.part.gives
        if not isinstance(given, tuple) or len(given) != len(names):
            raise UnsupportedError(
                f"the part returned {describe(given)}, not a tuple of {len(names)} for {names}"
            )
        return given

    def _checkpointed(self, arguments: list[Any], deferred: DeferredWeights | None) -> Any:
        """Run the part on copies, so that it can be run again if it changes them in place."""

        def on_copies(*arguments: Any) -> Any:
            return self.part.module(*walk(arguments, _copy))

        def contexts() -> tuple[Any, Any]:
            again = contextlib.nullcontext() if deferred is None else deferred.again()
            return contextlib.nullcontext(), _both(again, _same_buffers(self.part.module))

        with set_checkpoint_early_stop(deferred is None):  # the last layer wants its input, too
            return checkpoint(on_copies, *arguments, use_reentrant=False, context_fn=contexts)

    def _defers(self, defer: bool) -> DeferredWeights | None:
        if not defer or not torch.is_grad_enabled():
            return None
        parameters = [p for p in self.part.module.parameters() if p.requires_grad]
        if any(p._backward_hooks for p in parameters):  # they want to see the whole gradient
            return None
        return DeferredWeights(self._deferrable, parameters, self._recompute)

    def _check_changes(self, changed: Iterable[str]) -> None:
        for name in changed:
            if name in self._shared:
                raise UnsupportedError(
                    f"the part changes {name!r} in place, which another stage takes, too: let it "
                    f"change a copy, as x = x + y does instead of x += y"
                )

    def _differentiate(
        self,
        kept: _Kept,
        roots: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
        last: bool,
    ) -> None:
        try:
            if kept.deferred is None:
                torch.autograd.backward(roots, gradients)
            else:
                keys = [key for entry in kept.entries.values() for key in entry.keys]
                kept.deferred.backward(roots, gradients, keys, last)
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            what = " and ".join(map(repr, kept.changed))
            what = f"{what}, which the stage takes," if what else "a tensor"
            raise UnsupportedError(
                f"an in-place operation changed {what} although backward needs it as it was: use "
                f"the operation that is not in place, such as nn.ReLU() or x = x + y ({error})"
            ) from error


def _scalar(loss: torch.Tensor | None) -> torch.Tensor | None:
    if loss is not None and loss.numel() != 1:
        raise UnsupportedError(
            f"the loss has shape {tuple(loss.shape)}: return its mean over the samples, a scalar"
        )
    return loss


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


@contextlib.contextmanager
def _both(first: AbstractContextManager, second: AbstractContextManager) -> Iterator[None]:
    with first, second:
        yield


@contextlib.contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Leave the buffers, such as the statistics of batch norms, as they are before the body."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.data.copy_(value)
