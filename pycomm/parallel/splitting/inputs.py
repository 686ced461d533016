"""The inputs of a model: how what the user gives becomes the arguments of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from pycomm.errors import ArgumentError


def input_names(model: nn.Module, inputs: Sequence[str] | None) -> list[str]:
    """Return which parameters of `model.forward` get values; the others keep their defaults.

    Args:
        model: its forward decides.
        inputs: names; None means those without a default, or else the first.

    Raises:
        ArgumentError: a name is none of forward's, one without a default is missing, or forward
            takes *args or **kwargs that it needs.
    """
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    named = {p.name: p for p in parameters if p.kind not in _VARIADIC}
    needed = [name for name, p in named.items() if p.default is inspect.Parameter.empty]
    given = list(inputs) if inputs is not None else needed or list(named)[:1]
    if not named or not given:
        raise ArgumentError(
            f"{type(model).__name__}.forward names no arguments: give it parameters with names"
        )
    for name in [*given, *needed]:
        if name not in named or name not in given:
            raise ArgumentError(
                f"inputs={given} does not fit {type(model).__name__}.forward({', '.join(named)}): "
                f"{name!r} is {'missing' if name in named else 'unknown'}"
            )
    return [name for name in named if name in given]


def takes_as_it_is(model: nn.Module) -> bool:
    """Say whether forward has one parameter, which gets the input whatever it is."""
    return len(inspect.signature(type(model).forward).parameters) == 2


def unpack(given: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the values for forward's parameters `names` from what the user gives as input.

    Args:
        given: a tuple or list in the order of `names`, a dict by name, or a single value.
        names: of the parameters.

    Raises:
        ArgumentError: there are more or fewer values than names, or others.
    """
    if isinstance(given, dict):
        if set(given) != set(names):
            raise ArgumentError(
                f"the input has {sorted(map(str, given))}, but the model was split for "
                f"{sorted(names)}: pass inputs={sorted(map(str, given))} when it is split"
            )
        return tuple(given[name] for name in names)
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if len(values) != len(names):
        raise ArgumentError(
            f"the input has {len(values)} values, but the model was split for "
            f"{len(names)} ({', '.join(names)}): pass inputs=, their names, when it is split"
        )
    return values


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
