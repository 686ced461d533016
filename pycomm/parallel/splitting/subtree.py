"""A part of a module tree: some modules and tensors, under the names they have in the whole."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from pycomm.parallel.tensor.divided import Divided


def copy_subtree(
    root: nn.Module, into: nn.Module, modules: Collection[str], tensors: Collection[str]
) -> None:
    """Give `into` some modules and tensors of `root`, in empty modules, in the order of `root`.

    Nothing is copied but the tree.

    Args:
        root: the whole.
        into: an empty module.
        modules: full names.
        tensors: full names of parameters, buffers and tensors that are plain attributes.
    """
    above = {prefix for name in (*modules, *tensors) for prefix in _above(name)}
    _fill(into, root, "", set(modules), set(tensors), above)


def _fill(
    shell: nn.Module,
    module: nn.Module,
    prefix: str,
    modules: set[str],
    tensors: set[str],
    above: set[str],
) -> None:
    shell.training = module.training
    for name, parameter in module._parameters.items():
        if prefix + name in tensors:
            shell.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        if prefix + name in tensors:
            persistent = name not in module._non_persistent_buffers_set
            shell.register_buffer(name, buffer, persistent)
    for name, value in vars(module).items():
        if prefix + name in tensors and isinstance(value, torch.Tensor):
            setattr(shell, name, value)
    for name, child in module._modules.items():  # named_children() would leave out repetitions
        path = prefix + name
        if child is not None and path in modules:
            shell.add_module(name, child)
        elif child is not None and path in above:
            inner = _empty_like(child, path, tensors)
            shell.add_module(name, inner)
            _fill(inner, child, path + ".", modules, tensors, above)


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _empty_like(module: nn.Module, path: str, tensors: set[str]) -> nn.Module:
    """Return a module for some tensors of another; it also knows how these are divided."""
    if not isinstance(module, Divided):
        return nn.Module()
    empty = Divided()
    empty.divisions = {n: d for n, d in module.divisions.items() if f"{path}.{n}" in tensors}
    return empty
