"""Where what a stage has taken enters autograd, and where its gradients come out."""

from __future__ import annotations

from typing import Any

import torch

from pycomm.parallel.values import Value


class Entry:
    """A value as a stage is called with it, and the gradients that reach it.

    Attributes:
        content: the value; tensors that learn require gradients, and are no leaves: the stage may
            change them in place, as the unsplit model may.
        keys: leaves to differentiate to, one for each tensor that learns.
    """

    def __init__(self, value: Value):
        self._tensors = value.tensors
        self._versions = [tensor._version for tensor in value.tensors]
        self._boxes: list[list[torch.Tensor]] = []
        self.keys: list[torch.Tensor] = []
        learns = iter(value.learns)
        self.content = value.with_tensors(lambda t: self._enter(t, next(learns))).content()

    @property
    def was_changed(self) -> bool:
        """Whether a tensor has been changed in place."""
        return any(t._version != v for t, v in zip(self._tensors, self._versions))

    def gradients(self) -> list[torch.Tensor | None]:
        """Return the gradients of the tensors that learn; None where none has come."""
        return [box[0] if box else None for box in self._boxes]

    def _enter(self, tensor: torch.Tensor, learns: bool) -> torch.Tensor:
        if not learns:
            return tensor
        self._boxes.append([])
        self.keys.append(tensor.new_empty(0).requires_grad_())
        return _Enter.apply(self.keys[-1], tensor, self._boxes[-1])


class _Enter(torch.autograd.Function):
    """The gradient that reaches an activation goes into `box`."""

    @staticmethod
    def forward(ctx: Any, key: torch.Tensor, activation: torch.Tensor, box: list) -> torch.Tensor:
        ctx.box = box
        return activation.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        ctx.box.append(gradient)
        return None, None, None
