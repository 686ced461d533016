"""Filling: the tensors of a part that was built without memory get their values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pycomm.errors import ArgumentError

Slot = tuple[dict[str, Any], str, torch.Tensor]
"""Where a module keeps a tensor: a dict, the key, and the tensor."""

Own = tuple[str, nn.Module, list[Slot]]
"""Full name, module, and where it keeps the tensors of its own."""

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


def modules_of(model: nn.Module) -> list[Own]:
    """Return the modules of a model on the meta device that have tensors of their own, in order."""
    every = ((name, module, list(_own_slots(module))) for name, module in model.named_modules())
    return [(name, module, slots) for name, module, slots in every if slots]


def fill_by_modules(
    modules: Sequence[Own],
    part: nn.Module,
    shard: Shard,
    init: Init | None = None,
    seed: int = 0,
) -> None:
    """Give a part of a model on the meta device the values that its modules set themselves.

    The seed is set; then every module gets memory for its own tensors, and `init(name, module)`, or
    without that its own `reset_parameters()`, is called. What is not in the part is dropped at
    once, and of a divided tensor all but the shard.

    Args:
        modules: of the whole model, see `modules_of`, before any layer was divided.
        part: has tensors by the same full names.
        shard: what is kept of each.
        init, seed: as above.

    Raises:
        ArgumentError: there is no `init`, and a module has no `reset_parameters`.
    """
    names = _names_by_id(modules, set(missing_names(part)))
    uses = Counter(id(tensor) for _, _, slots in modules for _, _, tensor in slots)
    shared: dict[int, torch.Tensor] = {}  # whole tensors that a later module initialises, too
    built: dict[str, torch.Tensor] = {}
    torch.manual_seed(seed)
    for path, module, slots in modules:
        for old, value in _initialised(path, module, slots, init, shared):
            uses[old] -= 1
            if uses[old] and names[old]:
                shared[old] = value
                continue
            shared.pop(old, None)
            built |= {name: shard(name, value) for name in names[old]}
    fill_from(built, part, lambda name, value: value)


def _names_by_id(modules: Sequence[Own], wanted: set[str]) -> dict[int, set[str]]:
    """Return for the id of each tensor those of its full names that are wanted."""
    names: dict[int, set[str]] = defaultdict(set)
    for path, _, slots in modules:
        for _, key, tensor in slots:
            names[id(tensor)] |= {f"{path}.{key}".lstrip(".")} & wanted
    return names


def _initialised(
    path: str,
    module: nn.Module,
    slots: list[Slot],
    init: Init | None,
    shared: Mapping[int, torch.Tensor],
) -> list[tuple[int, torch.Tensor]]:
    """Return what a module sets its own tensors to, by the ids of those on the meta device."""
    fresh = {id(t): shared.get(id(t), torch.empty_like(t, device="cpu")) for _, _, t in slots}
    _put(slots, fresh)
    try:
        with torch.no_grad():
            _initialise(path, module, init)
        return [(id(old), own[key].detach()) for own, key, old in slots]
    finally:
        for own, key, tensor in slots:
            own[key] = tensor


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
