"""Source: what the user gives as a model, with or without memory, and how a part gets values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.initial_values.building import Building
from pycomm.parallel.initial_values.fill import (
    Init,
    fill_by_modules,
    fill_from,
    has_memory,
    named_tensors,
    tensors_in,
    without_memory,
)
from pycomm.parallel.random_states import random_states, restore_random_states
from pycomm.parallel.splitting.reading import Model, whole


@dataclass(frozen=True)
class Source:
    """A model to split.

    Attributes:
        model: on the meta device, if it has no memory yet.
        deferred: whether it has none.
        fill: gives a part's module memory and values; does nothing where it has them.
    """

    model: nn.Module
    deferred: bool
    fill: Callable[[nn.Module], None]


def source_of(
    given: Model | Callable[[], Model], init: Init | None = None, seed: int = 0
) -> Source:
    """Return the model that a user gives in one of three ways.

    Args:
        given: a model with values, which stay; a factory, which is called twice, and of which each
            part gets the values that calling it once in one process would give from the same
            random state; or a model built on the meta device, filled module by module, see
            `fill_by_modules`.
        init, seed: for the last of them.
    """
    if callable(given) and not isinstance(given, nn.Module):
        return _from_factory(given)
    model = whole(given)
    if has_memory(model):
        return Source(model, False, lambda part: None)
    return Source(model, True, lambda part: fill_by_modules(model, part, init, seed))


def _from_factory(factory: Callable[[], Model]) -> Source:
    """Build once to know the structure, and again for each part that is filled."""
    before = random_states()
    with Building() as building:
        model = whole(factory())
    restore_random_states(before)
    origins = {name: building.origins(t) for name, t in named_tensors(model)}
    without_memory(model)
    building.settle()

    def fill(part: nn.Module) -> None:
        names = [name for name, _ in tensors_in(model, part)]
        with Building(frozenset().union(*(origins[name] for name in names))) as again:
            built = whole(factory())
        for name, tensor in tensors_in(built, part):
            if tensor.is_meta:
                raise ArgumentError(
                    f"{name!r} was not made by the factory: let it build the whole model each time "
                    f"it is called, and nothing before"
                )
            if again.lost(tensor) or again.origins(tensor) != origins[name]:
                raise ArgumentError(
                    f"the factory built {name!r} in another way the second time: it must do the "
                    f"same each time it is called"
                )
        fill_from(built, part)

    return Source(model, True, fill)
