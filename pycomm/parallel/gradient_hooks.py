"""Calling an object when autograd has added to a parameter's gradient, as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Owner = TypeVar("Owner")


def on_gradient(parameter: nn.Parameter, owner: Owner, ready: Callable[[Owner], None]) -> None:
    """Call `ready(owner)` whenever a backward pass has added to `parameter.grad`.

    Args:
        parameter: one that requires a gradient.
        owner: is not kept alive by the model; when it goes, so does the hook.
        ready: must not refer to `owner` itself.
    """
    weak = weakref.ref(owner)

    def call(_: torch.Tensor) -> None:
        if (alive := weak()) is not None:
            ready(alive)

    handle = parameter.register_post_accumulate_grad_hook(call)
    weakref.finalize(owner, handle.remove)
