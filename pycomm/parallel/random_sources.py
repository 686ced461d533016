"""Which of torch's functions draw random numbers, and the report of those that a model uses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

_logger = logging.getLogger("pycomm")

_IN_PYTHON = {
    "gumbel_softmax",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
}
"""Functions of torch.nn.functional that draw inside, of which no operator of torch knows it."""

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def is_random(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether this call of one of torch's functions draws random numbers.

    Every operator that may draw has a tag; some do so only when told to, by an argument.
    """
    name = getattr(func, "__name__", "")
    if not _may_draw(name):
        return False
    if name in _RECURRENT:
        return _drops_between_layers(args)
    return kwargs.get("training", True) is not False


@lru_cache(maxsize=4096)
def _may_draw(name: str) -> bool:
    if name in _IN_PYTHON:
        return True
    packet = getattr(torch.ops.aten, name, None) if not name.startswith("_") else None
    if packet is None:
        return False
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(packet, overload).tags for overload in packet.overloads())


def _drops_between_layers(args: Sequence[Any]) -> bool:
    """Say so of (…, has_biases, num_layers, dropout, train, …)."""
    first_flag = next((i for i, a in enumerate(args) if isinstance(a, bool)), len(args))
    given = args[first_flag + 1 : first_flag + 4]
    if len(given) < 3:
        return False
    layers, dropout, train = given
    return bool(layers > 1 and dropout > 0 and train)


class Reports:
    """Says once for each function and module that its random numbers depend on the layout."""

    def __init__(self) -> None:
        self._made: set[tuple[str, str]] = set()

    @property
    def any(self) -> bool:
        """Whether there was anything to say."""
        return bool(self._made)

    def add(self, func: Callable[..., Any], layer: str) -> None:
        """Warn of a function that the module of this name has called, if it is the first time."""
        name = getattr(func, "__name__", str(func))
        if (name, layer) in self._made:
            return
        self._made.add((name, layer))
        where = f"module {layer!r}" if layer else "the model's outermost module"
        _logger.warning(
            "%s in %s draws from torch's random generator: its values depend on the layout (how "
            "many ranks, parts and microbatches), unlike those of dropout by torch.nn.functional; "
            "%s",
            name,
            where,
            _instead(name),
        )

    def add_opaque(self, layer: str) -> None:
        """Warn of a module that cannot be looked into."""
        self._made.add(("torch.jit", layer))
        _logger.warning(
            "module %r is compiled by torch.jit: dropout in it, and what else it draws, depends on "
            "the layout; use the module that it was made from",
            layer,
        )


def _instead(name: str) -> str:
    if name in _RECURRENT:
        return "build one layer at a time, with nn.Dropout between them"
    return (
        "use F.dropout of a tensor of ones as a mask, make such values before the model and pass "
        "them as inputs, or accept that another layout trains with others"
    )
