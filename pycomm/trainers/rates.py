"""Learning-rate schedules: step → factor of each group's learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from pycomm.errors import ArgumentError

Rates = Callable[[int], float]
"""The factor for a step, counted from 0; a pure function, so a resumed run goes on with it."""


def constant(warmup: int, last: int) -> Rates:
    """Return 1, after `warmup` steps that lead to it."""
    return lambda step: _rise(step, warmup)


def linear(warmup: int, last: int) -> Rates:
    """Return a straight line from 1 after `warmup` steps to 0 at `last`."""
    return lambda step: min(_rise(step, warmup), 1 - _fraction(step, warmup, last))


def cosine(warmup: int, last: int) -> Rates:
    """Return half a cosine from 1 after `warmup` steps to 0 at `last`.

    Source: Loshchilov and Hutter, SGDR (2017), equation 5, without restarts.
    """
    return lambda step: min(
        _rise(step, warmup), (1 + math.cos(math.pi * _fraction(step, warmup, last))) / 2
    )


RATES: dict[str, Callable[[int, int], Rates]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
"""Every schedule by its name; (warmup, last step) → Rates."""


def find_rates(name: str, warmup: int, last: int) -> Rates:
    """Return the schedule called `name`.

    Raises:
        ArgumentError: there is none, or `warmup` is not between 0 and `last`.
    """
    if name not in RATES:
        raise ArgumentError(f"schedule {name!r} is none of {', '.join(RATES)}")
    if not 0 <= warmup <= last:
        raise ArgumentError(f"warmup={warmup} must be between 0 and the {last} steps of the run")
    return RATES[name](warmup, last)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


def _fraction(step: int, warmup: int, last: int) -> float:
    return min(1.0, max(0.0, (step - warmup) / max(1, last - warmup)))
