"""Several parts of a model as one module, for optimizers, checkpoints and modes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn


def joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Return a module with everything that `modules` have, by the same names.

    One alone is returned as it is. Of nn.Sequentials it is one that applies their layers in that
    order; any others together cannot be called.
    """
    inside = [part for module in modules for part in _inside(module)]
    if len(inside) == 1:
        return inside[0]
    if all(isinstance(part, nn.Sequential) for part in inside):
        layers = [layer for part in inside for layer in part._modules.items()]
        return nn.Sequential(OrderedDict(layers))  # type: ignore[arg-type]
    return Joined(inside)


def _inside(module: nn.Module) -> Sequence[nn.Module]:
    return module.inside if isinstance(module, Joined) else [module]


class Joined(nn.Module):
    """Modules whose parameters have different names, without a name of their own in front.

    Attributes:
        inside: the modules.
    """

    inside: tuple[nn.Module, ...]

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.inside = tuple(modules)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules; `train`, `to` and `apply` go through them."""
        yield from ((str(index), module) for index, module in enumerate(self.inside))

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield all modules inside; parameters and buffers are looked for in these."""
        memo = set() if memo is None else memo
        yield prefix, self
        for module in self.inside:
            yield from module.named_modules(memo, prefix, remove_duplicate)

    def state_dict(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state of all modules."""
        states = [module.state_dict(**kwargs) for module in self.inside]
        return {name: value for state in states for name, value in state.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Give each module its part of a state."""
        for module in self.inside:
            mine = {name: state_dict[name] for name in module.state_dict() if name in state_dict}
            module.load_state_dict(mine, strict, assign)
