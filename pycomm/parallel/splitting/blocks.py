"""Blocks: which modules of a model stay whole when it is traced."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from pycomm.errors import ArgumentError

Leaves = Collection[str | type[nn.Module]]
"""Modules that stay whole: by full name, or by class."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Blocks:
    """Says which modules stay whole: those of torch.nn, blocks, and those asked for.

    A block is an element of a container (nn.Sequential, ModuleList, ModuleDict), unless it has
    such a row of composed modules inside. What has a cut inside is never whole.

    Args:
        model: the whole.
        leaves: further modules that stay whole.
        cuts: full names of modules at which parts begin.

    Raises:
        ArgumentError: a name in `leaves` is no module of the model, or has a cut inside.
    """

    def __init__(self, model: nn.Module, leaves: Leaves = (), cuts: Collection[str] = ()):
        names = {name for name, _ in model.named_modules(remove_duplicate=False)}
        self._named = {leaf for leaf in leaves if isinstance(leaf, str)}
        self._classes = tuple(leaf for leaf in leaves if isinstance(leaf, type))
        self._open = {prefix for cut in cuts for prefix in _prefixes(cut)}
        self._elements = {
            id(child)
            for module in model.modules()
            if isinstance(module, _CONTAINERS)
            for child in module.children()
        }
        for name in sorted(self._named - names):
            raise ArgumentError(f"leaves: the model has no module {name!r}")
        for name in sorted(self._named & self._open):
            raise ArgumentError(f"leaves: {name!r} stays whole, but a cut lies inside it")

    def has_cut_inside(self, name: str) -> bool:
        """Say whether a module must be traced, because a part begins inside it."""
        return name in self._open

    def whole(self, module: nn.Module, name: str) -> bool:
        """Say whether a module stays whole."""
        if name in self._named or isinstance(module, self._classes):
            return True
        if self.has_cut_inside(name):
            return False
        if type(module).__module__.startswith("torch.nn") and not isinstance(module, _CONTAINERS):
            return True
        return id(module) in self._elements and not _has_row(module)


def _has_row(module: nn.Module) -> bool:
    """Say whether a container inside has two or more elements that have modules themselves."""
    rows = (inner for inner in module.modules() if isinstance(inner, _CONTAINERS))
    return any(sum(any(child.children()) for child in row.children()) > 1 for row in rows)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
