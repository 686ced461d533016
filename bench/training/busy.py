"""The time that a rank computes for a step, by hooks that know nothing of who makes the step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bench.ranks import Ranks
from bench.training.variants.base import Training
from pycomm.parallel.deferred import DeferredWeights

_STEPS = 3

_COMPUTING: list[tuple[Any, str]] = [
    (torch.autograd, "backward"),
    (torch.autograd, "grad"),
    (DeferredWeights, "finish"),
]
"""Functions in which gradients are computed."""


class Busy:
    """Adds up the wall time that this process spends in modules, in autograd and in optimizers.

    It counts in the body of a `with`. What of these runs inside another counts once.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def __enter__(self) -> Busy:
        self._undo = ExitStack()
        for handle in (
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
            register_optimizer_step_pre_hook(self._begin),
            register_optimizer_step_post_hook(self._end),
        ):
            self._undo.callback(handle.remove)
        for owner, name in _COMPUTING:
            function = getattr(owner, name)
            setattr(owner, name, self._timed(function))
            self._undo.callback(setattr, owner, name, function)
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _begin(self, *_: Any) -> None:
        if self._depth == 0:
            self._since = time.perf_counter()
        self._depth += 1

    def _end(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._since

    def _timed(self, function: Callable) -> Callable:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            try:
                return function(*args, **kwargs)
            finally:
                self._end()

        return timed


def idle_percent(training: Training, ranks: Ranks) -> list[float]:
    """Make three steps; return for each rank in how much of a step it does not compute; collective.

    A step is as long as on the slowest rank; of the three the median counts.
    """
    rows = []
    for _ in range(_STEPS):
        ranks.barrier()
        with Busy() as busy:
            start = time.perf_counter()
            training.step()
            took = time.perf_counter() - start
        everyone = ranks.gathered((busy.seconds, took))
        longest = max(seconds for _, seconds in everyone)
        rows.append([100 * (1 - computing / longest) for computing, _ in everyone])
    return [float(share) for share in np.median(rows, axis=0)]
