"""Activation checkpointing: what is computed again is computed in the state of the first time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from torch.utils import checkpoint

Restore = Callable[[], AbstractContextManager[Any]]
"""Makes a context in which things are as they were; any number of times."""


@cache
def restore_in_checkpoints(capture: Callable[[], Restore | None]) -> None:
    """From now on have torch.utils.checkpoint recompute in what `capture` returned in forward.

    It is called at the start of each checkpointed function; None changes nothing. torch lets one
    pass such contexts by `context_fn`, but only those who write the model, and not for
    use_reentrant=True; so what both kinds of checkpoint call is replaced, for all of the process.
    """
    forward = checkpoint.CheckpointFunction.forward
    generator = checkpoint._checkpoint_without_reentrant_generator

    def forward_of_both(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        restore = capture()
        return forward(ctx, function if restore is None else _Again(function, restore, 1), *args)

    def recomputing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        restore = capture()
        again = function if restore is None else _Again(function, restore, 0)
        return generator(again, *args, **kwargs)

    checkpoint.CheckpointFunction.forward = staticmethod(forward_of_both)  # type: ignore[method-assign]
    checkpoint._checkpoint_without_reentrant_generator = recomputing  # type: ignore[assignment]


class _Again:
    """A function whose calls after the first `plain` ones are made in a restored state."""

    def __init__(self, function: Callable[..., Any], restore: Restore, plain: int):
        self._function, self._restore, self._plain = function, restore, plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._plain:
            self._plain -= 1
            return self._function(*args, **kwargs)
        with self._restore():
            return self._function(*args, **kwargs)
