"""The stage executor: runs one stage's actions, activations forward, gradients back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.errors import UnsupportedError
from pycomm.parallel.schedule import Action, Forward

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Loss = Callable[[int, torch.Tensor], torch.Tensor | None]
"""(microbatch, output) → a scalar to differentiate, or None where nothing is to be learnt."""


class _Entry(torch.autograd.Function):
    """Where a received activation enters autograd: the gradient that reaches it goes into `box`.

    The result is no leaf, so a layer may change it in place, as it may in the unsplit model.
    """

    @staticmethod
    def forward(ctx: Any, key: torch.Tensor, activation: torch.Tensor, box: list) -> torch.Tensor:
        ctx.box = box
        return activation.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        ctx.box.append(gradient)
        return None, None, None


class Stage:
    """One rank's part of a model, and its neighbours in the pipeline: ranks ± 1 of `comm`.

    An activation is one tensor. Its gradient travels back if it is of a float or complex dtype
    and a parameter before it is trained; both sides know that without asking.

    Args:
        module: this stage's layers.
        comm: one rank for each stage, in order.
        trains_before: whether an earlier stage has a parameter that requires a gradient.
        context: makes the context of each forward pass and loss, such as autocast's.
    """

    def __init__(
        self,
        module: nn.Module,
        comm: Communicator,
        trains_before: bool = False,
        context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ):
        self.module, self.comm, self._context = module, comm, context
        self.first = comm.rank == 0
        self.last = comm.rank == comm.size - 1
        self._gradient_back = trains_before
        self._gradient_due = trains_before or any(p.requires_grad for p in module.parameters())
        self._reset()

    def run(
        self,
        actions: Iterable[Action | None],
        inputs: Sequence[torch.Tensor] = (),
        loss: Loss = lambda microbatch, output: None,
    ) -> None:
        """Run this stage's row of a schedule; gradients are added to the parameters' `grad`.

        A row without backward actions, under `torch.no_grad()`, only evaluates. All that was sent
        has been delivered when this returns.

        Args:
            actions: the row; bubbles (None) are passed over.
            inputs: on the first stage one tensor for each microbatch.
            loss: on the last stage, called once for each microbatch.

        Raises:
            UnsupportedError: this stage's result is not a single tensor.
        """
        self._reset()
        todo = [action for action in actions if action is not None]
        for action in todo:
            self._expect(action)
        for action in todo:
            if isinstance(action, Forward):
                self._forward(action.microbatch, inputs, loss)
            else:
                self._backward(action.microbatch)
        for work in self._sends:
            work.wait()
        self._reset()

    def _reset(self) -> None:
        self._activations: dict[int, Any] = {}  # microbatch → Work
        self._gradients: dict[int, Any] = {}  # microbatch → Work
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor | None, list]] = {}
        self._sends: list[Any] = []

    def _expect(self, action: Action) -> None:
        if isinstance(action, Forward) and not self.first:
            work = self.comm.irecv(self.comm.rank - 1, tag=action.microbatch)
            self._activations[action.microbatch] = work

    def _forward(self, m: int, inputs: Sequence[torch.Tensor], loss: Loss) -> None:
        box: list[torch.Tensor] = []
        x = inputs[m] if self.first else self._activations.pop(m).wait()
        back = self._travels(x, self._gradient_back)
        entry = _Entry.apply(x.new_empty(0).requires_grad_(), x, box) if back else x
        with self._context():
            y = self.module(entry)
            y = loss(m, y) if self.last else y
        if not self.last:
            self._pass_on(m, y)
        if torch.is_grad_enabled():
            self._kept[m] = (x, y, box)

    def _pass_on(self, m: int, y: Any) -> None:
        if not isinstance(y, torch.Tensor):
            raise UnsupportedError(
                f"stage {self.comm.rank} returned a {type(y).__name__}, but one tensor is passed "
                f"on: join them in one layer, or use other costs in balance= to split elsewhere"
            )
        self._sends.append(self.comm.isend(y.detach(), self.comm.rank + 1, tag=m))
        if torch.is_grad_enabled() and self._travels(y, self._gradient_due):
            self._gradients[m] = self.comm.irecv(self.comm.rank + 1, tag=m)

    def _backward(self, m: int) -> None:
        x, y, box = self._kept.pop(m)
        gradient = self._gradients.pop(m).wait() if m in self._gradients else None
        if y is not None and (self.last or y.requires_grad):
            y.backward(gradient)
        if self._travels(x, self._gradient_back):
            gradient = box[0] if box else torch.zeros_like(x)
            self._sends.append(self.comm.isend(gradient, self.comm.rank - 1, tag=m))

    @staticmethod
    def _travels(activation: torch.Tensor, trained: bool) -> bool:
        return trained and (activation.is_floating_point() or activation.is_complex())
