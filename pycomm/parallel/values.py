"""Values between stages, taken apart into tensors and what is around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pycomm.errors import UnsupportedError

CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(...)),
    *(slice, range, torch.dtype, torch.device),
)
"""The types of what may be in a value besides tensors, tuples, lists and dicts."""


@dataclass(frozen=True)
class Place:
    """Where in a value its tensor number `index` is."""

    index: int


@dataclass
class Value:
    """A tensor, or tuples, lists and dicts of tensors and constants, taken apart.

    Attributes:
        form: the value with a Place for each tensor.
        tensors: in the order of their places.
        learns: for each, whether its gradient is wanted.
    """

    form: Any
    tensors: list[torch.Tensor]
    learns: list[bool]

    @classmethod
    def of(cls, content: Any) -> Value:
        """Take `content` apart; a tensor learns if it requires a gradient and gradients are on.

        Raises:
            UnsupportedError: there is something else in it.
        """
        tensors: list[torch.Tensor] = []

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return _constant(leaf)
            if leaf.layout != torch.strided:
                raise UnsupportedError(f"a tensor of layout {leaf.layout}: pass its to_dense()")
            tensors.append(leaf)
            return Place(len(tensors) - 1)

        form = walk(content, place)
        learning = torch.is_grad_enabled()
        return cls(form, tensors, [learning and tensor.requires_grad for tensor in tensors])

    def content(self) -> Any:
        """Return the value put together."""
        return walk(
            self.form, lambda leaf: self.tensors[leaf.index] if isinstance(leaf, Place) else leaf
        )

    def learning(self) -> list[torch.Tensor]:
        """Return the tensors whose gradients are wanted."""
        return [tensor for tensor, learns in zip(self.tensors, self.learns) if learns]

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Value:
        """Return a value of the same form, with each tensor changed."""
        return Value(self.form, list(map(change, self.tensors)), self.learns)


def walk(content: Any, change: Callable[[Any], Any]) -> Any:
    """Return tuples, lists and dicts as they are, with everything else in them changed."""
    kind = type(content)
    if isinstance(content, tuple) and hasattr(content, "_fields"):
        return kind(*(walk(part, change) for part in content))
    if isinstance(content, torch.Size):
        return content
    if isinstance(content, (list, tuple)):
        return kind(walk(part, change) for part in content)
    if isinstance(content, dict):
        return kind((key, walk(part, change)) for key, part in content.items())
    return change(content)


def describe(content: Any) -> str:
    """Return what a value is, in short: types and shapes, no numbers."""
    if isinstance(content, torch.Tensor):
        return f"{str(content.dtype).removeprefix('torch.')} {tuple(content.shape)}"
    if isinstance(content, (list, tuple)):
        return f"{type(content).__name__} of ({', '.join(map(describe, content))})"
    if isinstance(content, dict):
        inside = ", ".join(f"{key!r}: {describe(part)}" for key, part in content.items())
        return f"{type(content).__name__} of {{{inside}}}"
    return type(content).__name__


def _constant(leaf: Any) -> Any:
    if not isinstance(leaf, CONSTANTS):
        raise UnsupportedError(
            f"a {type(leaf).__name__} cannot go from stage to stage: pass tensors, numbers, "
            f"strings or None, or tuples, lists and dicts of these"
        )
    return leaf
