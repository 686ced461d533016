"""Layers of which every rank has a part, and how their parameters are found by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.parallel.tensor.division import Division, take_shard

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Divided(nn.Module):
    """A layer of which each rank of a group has a part.

    Attributes:
        divisions: how each of its own parameters that is divided is divided, by its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.divisions: dict[str, Division] = {}

    def take(
        self, name: str, full: torch.Tensor | None, division: Division | None, rank: int
    ) -> None:
        """Register this rank's part of a whole parameter; all of it if `division` is None."""
        if full is None:
            self.register_parameter(name, None)
            return
        mine = full.detach().clone() if division is None else take_shard(full, division, rank)
        if division is not None:
            self.divisions[name] = division
        self.register_parameter(name, nn.Parameter(mine.detach(), full.requires_grad))


def divisions(module: nn.Module) -> dict[str, Division]:
    """Return how the parameters of a model that are divided are divided, by their full names."""
    return {
        f"{prefix}.{name}" if prefix else name: division
        for prefix, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, Divided)
        for name, division in layer.divisions.items()
    }


def counted(module: nn.Module, comm: Communicator) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that this rank counts, such that each element is counted once.

    Those are its shards, and on rank 0 also what every rank has all of; for norms of gradients, and
    numbers of parameters.

    Args:
        comm: the tensor-parallel group.
    """
    divided = divisions(module)
    for name, parameter in module.named_parameters():
        if comm.rank == 0 or name in divided:
            yield name, parameter
