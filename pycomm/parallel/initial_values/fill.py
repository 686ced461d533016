"""Filling: the tensors of a part that was built without memory get their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pycomm.errors import ArgumentError

Slot = tuple[dict[str, Any], str, torch.Tensor]
"""Where a module keeps a tensor: a dict, the key, and the tensor."""

Init = Callable[[str, nn.Module], None]
"""(full name, module) sets the module's own parameters and buffers, not those of its children."""

Shard = Callable[[str, torch.Tensor], torch.Tensor]
"""(full name, whole tensor) → what a rank keeps of it."""


def has_memory(module: nn.Module) -> bool:
    """Say whether all tensors of a module have memory."""
    return not any(tensor.is_meta for _, _, tensor in _slots(module))


def without_memory(module: nn.Module) -> None:
    """Put tensors of the meta device in the place of all parameters, buffers and attributes."""
    slots = list(_slots(module))
    _put(slots, {id(t): torch.empty_like(t, device="meta") for _, _, t in slots})


def fill_from(built: Mapping[str, torch.Tensor], part: nn.Module, shard: Shard) -> None:
    """Give a part the tensors that a whole model has by the same full names, or shards of them."""
    slots, values = [], {}
    for path, module in part.named_modules(remove_duplicate=False):
        for own, key, tensor in _own_slots(module):
            if tensor.is_meta:
                slots.append((own, key, tensor))
                name = f"{path}.{key}".lstrip(".")
                values[id(tensor)] = shard(name, built[name].detach())
    _put(slots, values)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all parameters, buffers and tensors that are attributes, under all their names."""
    for path, inner in module.named_modules(remove_duplicate=False):
        for _, key, tensor in _own_slots(inner):
            yield f"{path}.{key}".lstrip("."), tensor


def missing_names(part: nn.Module) -> list[str]:
    """Return the full names of the tensors of a part that have no memory."""
    return [name for name, tensor in named_tensors(part) if tensor.is_meta]


def fill_by_modules(
    model: nn.Module,
    part: nn.Module,
    init: Init | None = None,
    seed: int = 0,
) -> None:
    """Give a part of a model on the meta device the values that its modules set themselves.

    The seed is set; then, in the order of `model.named_modules()`, every module that has tensors
    of its own on the meta device gets memory and `init(name, module)`, or without that its own
    `reset_parameters()`, is called. What is not in the part is dropped at once.

    Raises:
        ArgumentError: there is no `init`, and a module has no `reset_parameters`.
    """
    kept = {id(tensor) for _, _, tensor in _slots(part)}
    values: dict[int, torch.Tensor] = {}
    torch.manual_seed(seed)
    for name, module in model.named_modules():
        slots = [slot for slot in _own_slots(module) if slot[2].is_meta]
        if not slots:
            continue
        fresh = {id(t): values.get(id(t), torch.empty_like(t, device="cpu")) for _, _, t in slots}
        _put(slots, fresh)
        try:
            with torch.no_grad():
                _initialise(name, module, init)
        finally:
            for own, key, tensor in slots:
                own[key] = tensor
        values |= {key: tensor for key, tensor in fresh.items() if key in kept}
    _put([slot for slot in _slots(part) if slot[2].is_meta], values)


def _initialise(name: str, module: nn.Module, init: Init | None) -> None:
    if init is not None:
        init(name, module)
        return
    own = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if own is None:
        raise ArgumentError(
            f"module {name!r}, a {type(module).__name__} on the meta device, has tensors of its "
            f"own and no reset_parameters(): give it one, or pass init=, (name, module) → None"
        )
    own()


def _slots(module: nn.Module) -> Iterator[Slot]:
    for inner in module.modules():
        yield from _own_slots(inner)


def _own_slots(module: nn.Module) -> Iterator[Slot]:
    for own in (module._parameters, module._buffers, vars(module)):
        for key, value in list(own.items()):
            if isinstance(value, torch.Tensor):
                yield own, key, value


def _put(slots: list[Slot], values: Mapping[int, torch.Tensor]) -> None:
    """Put a new tensor in the place of each; one that is in several places stays one."""
    new: dict[int, torch.Tensor] = {}
    for own, key, old in slots:
        if id(old) not in new:
            value = values[id(old)]
            if isinstance(old, nn.Parameter):
                value = nn.Parameter(value, old.requires_grad)
                vars(value).update(vars(old))
            new[id(old)] = value
        own[key] = new[id(old)]
