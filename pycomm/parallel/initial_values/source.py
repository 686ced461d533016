"""Source: what the user gives as a model, with or without memory, and how a part gets values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.initial_values.building import Building
from pycomm.parallel.initial_values.fill import (
    Init,
    Shard,
    fill_by_modules,
    fill_from,
    has_memory,
    missing_names,
    modules_of,
    named_tensors,
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
        fill: gives a part's module memory and values, of divided tensors this rank's shards; does
            nothing where it has them.
    """

    model: nn.Module
    deferred: bool
    fill: Callable[[nn.Module, Shard], None]


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
        return Source(model, False, lambda part, shard: None)
    modules = modules_of(model)
    return Source(
        model, True, lambda part, shard: fill_by_modules(modules, part, shard, init, seed)
    )


def _from_factory(factory: Callable[[], Model]) -> Source:
    """Build once to know the structure, and again for each part that is filled."""
    before = random_states()
    with Building() as building:
        model = whole(factory())
    restore_random_states(before)
    origins = {name: building.origins(t) for name, t in named_tensors(model)}
    without_memory(model)
    building.settle()

    def fill(part: nn.Module, shard: Shard) -> None:
        names = missing_names(part)
        wanted = [origins[name] for name in names if name in origins]
        with Building(frozenset().union(*wanted)) as again:
            built = dict(named_tensors(whole(factory())))
        for name in names:
            _check_built_again(name, built.get(name), again, origins.get(name))
        fill_from(built, part, shard)

    return Source(model, True, fill)


def _check_built_again(
    name: str, tensor: torch.Tensor | None, building: Building, origins: frozenset[int] | None
) -> None:
    if tensor is None or tensor.is_meta or origins is None:
        raise ArgumentError(
            f"{name!r} was not made by the factory: let it build the whole model each time it is "
            f"called, and nothing before"
        )
    if building.lost(tensor) or building.origins(tensor) != origins:
        raise ArgumentError(
            f"the factory built {name!r} in another way the second time: it must do the same each "
            f"time it is called"
        )
