"""Ready plans: for a type of layer, the styles of the layers in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.tensor.styles import Place, Style, part, sequence

Plan = Mapping[str, "str | Style"]
"""The style of each layer, by its name; `*` and `?` in a name stand for anything and a character.

If several names fit a layer, the last one counts.
"""

PLANS: dict[type[nn.Module], Callable[[Any], Plan]] = {}
"""For every type that is known a function that returns the plan of such a layer."""


def plan_for(kind: type[nn.Module]) -> Callable[[Callable[[Any], Plan]], Callable[[Any], Plan]]:
    """Register a function that returns the plan of a layer of a type.

    The names in the plan are those inside of the layer; "" is the layer itself.
    """

    def register(function: Callable[[Any], Plan]) -> Callable[[Any], Plan]:
        PLANS[kind] = function
        return function

    return register


def ready_plan(module: nn.Module) -> dict[str, str | Style]:
    """Return the plan of every layer in a model whose type is known.

    Raises:
        ArgumentError: there is none.
    """
    plan: dict[str, str | Style] = {}
    planned: list[str] = []
    for prefix, layer in module.named_modules():
        if type(layer) not in PLANS or any(prefix.startswith(p) for p in planned):
            continue
        planned.append(f"{prefix}." if prefix else "")
        for name, style in PLANS[type(layer)](layer).items():
            plan[".".join(filter(None, (prefix, name)))] = style
    if not plan:
        known = ", ".join(sorted(kind.__name__ for kind in PLANS))
        raise ArgumentError(
            f"a {type(module).__name__} has no layer with a ready plan (those are {known}): pass "
            "plan={name: style}"
        )
    return plan


@plan_for(nn.TransformerEncoderLayer)
def _encoder_layer(layer: nn.TransformerEncoderLayer) -> Plan:
    return {
        "": _batch_of_sequences,
        "self_attn": "attention",
        "linear1": "column",
        "linear2": "row",
        "norm1": "norm",
        "norm2": "norm",
        "dropout": part(-1, layer.linear1.out_features),
        "dropout1": "dropout",
        "dropout2": "dropout",
    }


@plan_for(nn.TransformerEncoder)
def _encoder(encoder: nn.TransformerEncoder) -> Plan:
    inner = {f"layers.{i}": _encoder_layer(layer) for i, layer in enumerate(encoder.layers)}
    plan = {".".join(filter(None, (k, n))): s for k, v in inner.items() for n, s in v.items()}
    return {"": _without_nested_tensors, **plan}


def _batch_of_sequences(layer: nn.Module, place: Place) -> nn.Module:
    first: bool = vars(layer)["_modules"]["self_attn"].batch_first
    if place.sequence_dim not in (None, int(first)):
        raise ArgumentError(
            f"rank {place.comm.rank}: {place.name!r} has batch_first={first}, so its sequence is "
            f"dimension {int(first)}: pass sequence_dim={int(first)}"
        )
    return sequence(layer, place)


def _without_nested_tensors(encoder: nn.Module, place: Place) -> nn.Module:
    """Keep padding, which in evaluation torch would leave out by tensors of another kind."""
    vars(encoder)["use_nested_tensor"] = False
    return encoder
