"""Parts: what a model is cut into, and the values that flow between them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

INPUT = "input"
"""The value that the first part takes: a microbatch of the model's inputs, as the user gave it."""

OUTPUT = "output"
"""The value that the last part gives: the model's output."""


@dataclass(frozen=True)
class Part:
    """One stage of a model.

    `module(*taken)` returns a tuple with one value for each name in `gives`. A value is a tensor,
    or a tuple, list or dict of values, or a number, string or None. Each name is given by one part
    and taken by any later ones: what skips parts travels straight from the one to the other. Only
    the first part takes INPUT, only the last gives OUTPUT.

    Attributes:
        module: the layers; its parameters have the names that they have in the whole model.
        takes: the names of the values it is called with, in order.
        gives: the names of the values it returns, in order.
    """

    module: nn.Module
    takes: tuple[str, ...]
    gives: tuple[str, ...]
