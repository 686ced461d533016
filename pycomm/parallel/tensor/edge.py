"""Edges of divided regions: what happens to activations on their way in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.parallel.group import Group
from pycomm.parallel.tensor import operations

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Edge:
    """The way into and out of a region in which each rank computes with other weights.

    Args:
        comm: the ranks.
        sequence_dim: the dimension along which activations outside of the region are divided, too
            (sequence parallelism); None if every rank has all of them.
    """

    def __init__(self, comm: Communicator, sequence_dim: int | None = None):
        self.group, self.sequence_dim = Group(comm), sequence_dim

    @property
    def comm(self) -> Communicator:
        """The ranks."""
        return self.group.comm

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Return all of the activations; the gradients that come back for them are added."""
        if self.sequence_dim is None:
            return operations.copy(x, self.comm)
        return operations.all_gather(x, self.comm, self.sequence_dim)

    def enter_first(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Let the first argument of a layer enter; a hook before its forward."""
        return self.enter(args[0]), *args[1:]

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of activations: all of it, or this rank's sequence part."""
        if self.sequence_dim is None:
            return operations.reduce(x, self.comm)
        return operations.reduce_scatter(x, self.comm, self.sequence_dim)

    def replicated(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return a parameter of which all ranks have all, for use outside of the region.

        There every rank computes the same, or with sequence parallelism, other elements, and then
        gradients are added.
        """
        return parameter if self.sequence_dim is None else operations.copy(parameter, self.comm)
