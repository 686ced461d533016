"""State by the parameters' full names, so that it fits any split of the model over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def optimizer_state(optimizer: torch.optim.Optimizer | None, module: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state with names in place of indices.

    Returns:
        {"state": {name: {...}}, "groups": [{"names": [...], "lr": ..., ...}]}; tensors are not
        copied. None gives no state and no groups.
    """
    if optimizer is None:
        return {"state": {}, "groups": []}
    names = _names(optimizer, module)
    saved = optimizer.state_dict()
    flat = [name for group in names for name in group]
    groups = [
        {"names": group, **{k: v for k, v in saved_group.items() if k not in _REPLACED}}
        for group, saved_group in zip(names, saved["param_groups"])
    ]
    return {"state": {flat[i]: state for i, state in saved["state"].items()}, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer | None, module: nn.Module, saved: Mapping[str, Any]
) -> None:
    """Give an optimizer what `optimizer_state` returned, perhaps of more parameters or fewer.

    Parameters without saved state start anew. A group takes its settings (lr, …) from the saved
    group that holds its first parameter.
    """
    if optimizer is None:
        return
    names = _names(optimizer, module)
    flat = [name for group in names for name in group]
    current = optimizer.state_dict()
    home = {name: group for group in saved["groups"] for name in group["names"]}
    for group, members in zip(current["param_groups"], names):
        settings = home.get(members[0], {}) if members else {}
        group.update({key: value for key, value in settings.items() if key != "names"})
    state = {i: saved["state"][name] for i, name in enumerate(flat) if name in saved["state"]}
    optimizer.load_state_dict({**current, "state": state})


_REPLACED = ("params", "param_names")


def _names(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[list[str]]:
    by_id = {id(p): name for name, p in module.named_parameters()}
    return [[by_id[id(p)] for p in group["params"]] for group in optimizer.param_groups]
