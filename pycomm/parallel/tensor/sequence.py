"""Sequence parallelism: between divided regions each rank has a part of the sequence.

Norms, dropout and additions are then divided, too, instead of the same on all ranks; what was the
sum at the edge of a region is its two halves (Korthikanti et al., Reducing Activation Recomputation
in Large Transformer Models, 2022, section 4.2.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.group import Group
from pycomm.parallel.tensor import operations

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class SequenceRegion:
    """Lets a layer that takes and returns whole sequences compute with parts of them.

    Attributes:
        enters: whether what the layer takes is a whole sequence, and is divided.
        leaves: whether what it returns is made whole.
    """

    def __init__(self, comm: Communicator, dim: int):
        self.group, self.dim = Group(comm), dim
        self.enters = self.leaves = True

    @classmethod
    def around(cls, layer: nn.Module, comm: Communicator, dim: int) -> SequenceRegion:
        """Make a layer, in place, such a region; its first argument and its result are divided."""
        region = cls(comm, dim)
        layer.register_forward_pre_hook(region._enter)
        layer.register_forward_hook(region._leave)
        return region

    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.enters:
            return args
        if not args or not isinstance(args[0], torch.Tensor) or args[0].dim() < 3:
            shape = tuple(args[0].shape) if args and isinstance(args[0], torch.Tensor) else None
            raise ArgumentError(
                f"a {type(layer).__name__} whose sequences are divided was called with shape "
                f"{shape}: its first argument must be a tensor of three dimensions, of which "
                f"number {self.dim} is the sequence"
            )
        return operations.scatter(args[0], self.group.comm, self.dim), *args[1:]

    def _leave(self, layer: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return operations.gather(output, self.group.comm, self.dim) if self.leaves else output


def join(first: SequenceRegion, second: SequenceRegion) -> None:
    """Leave sequences divided between two layers of which the one's output is the other's input."""
    if first.dim == second.dim:
        first.leaves = second.enters = False


class SumGradients:
    """Adds the gradients of a layer's parameters over the ranks, each of which has a part of it.

    Copies of the layer do so, too: it looks before each forward whether its parameters are seen to.
    """

    def __init__(self, comm: Communicator):
        self.group = Group(comm)

    @classmethod
    def of(cls, layer: nn.Module, comm: Communicator) -> None:
        """Do so for a layer, in place."""
        layer.register_forward_pre_hook(cls(comm))

    def __call__(self, layer: nn.Module, args: Any) -> None:
        """See to the layer's parameters."""
        for parameter in layer.parameters():
            if parameter.requires_grad and vars(parameter).get("summed_by") is not self.group:
                parameter.register_hook(self._sum)
                vars(parameter)["summed_by"] = self.group

    def _sum(self, gradient: torch.Tensor) -> torch.Tensor:
        return operations.reduce(gradient, self.group.comm)
