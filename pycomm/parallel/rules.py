"""Which torch optimizers update element by element, and which of them in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import optim

from pycomm.kernels import update

ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.Adagrad,
    optim.RMSprop,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.Adadelta,
    optim.ASGD,
    optim.Rprop,
)
"""Each element's update needs only its own gradient and state, so a part of a tensor will do."""

_RULES = {optim.SGD: update.SGD, optim.Adam: update.ADAM, optim.AdamW: update.ADAM}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether an optimizer may be given parts of the parameters. Subclasses may do anything."""
    return type(optimizer) in ELEMENTWISE


def rule_of(optimizer: torch.optim.Optimizer) -> int | None:
    """Return the rule of kernels.update that does what an optimizer does, or None."""
    rule = _RULES.get(type(optimizer))
    fits = rule is not None and all(_fits(group) for group in optimizer.param_groups)
    return rule if fits else None


def _fits(group: Mapping[str, Any]) -> bool:
    options = ("amsgrad", "capturable", "differentiable")
    numbers = [group["lr"], group["weight_decay"], *group.get("betas", ())]
    return (
        not any(group.get(option) for option in options)
        and not any(isinstance(number, torch.Tensor) for number in numbers)
        and all(p.dtype in _DTYPES and p.device.type == "cpu" for p in group["params"])
    )


def settings(kind: type, group: Mapping[str, Any], step: float) -> tuple[float, ...]:
    """Return the row of settings for a group's parameters in their step number `step`, from 1."""
    names = ("lr", "weight_decay", "maximize")
    common = {name: group[name] for name in names}
    if kind is optim.SGD:
        more = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
        return update.sgd_settings(**common, **more, first=step == 1)
    decoupled = kind is optim.AdamW or bool(group.get("decoupled_weight_decay"))
    return update.adam_settings(
        **common, betas=group["betas"], eps=group["eps"], decoupled=decoupled, step=step
    )
