"""Tied weights: parameters that several parts of a model hold, kept equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.errors import ArgumentError

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


@dataclass(frozen=True)
class Tie:
    """A parameter that several parts hold.

    Attributes:
        names: all its full names in the whole model; every part has it under the first.
        stages: the parts that hold it, ascending.
    """

    names: tuple[str, ...]
    stages: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name that `named_parameters` of the whole model, and of every part, has."""
        return self.names[0]


class TiedWeights:
    """The tied weights of this rank's parts; every rank must make one.

    Equal weights, the same sum of gradients and the same update keep them equal.

    Args:
        ties: of the split.
        module: this rank's part, or all of them in one module.
        comm: the ranks of the pipeline.
        rank_of: stage → rank; by default the same number.

    Raises:
        ArgumentError: a tied parameter is missing in `module`.
    """

    def __init__(
        self,
        ties: Sequence[Tie],
        module: nn.Module,
        comm: Communicator,
        rank_of: Callable[[int], int] = int,
    ):
        own = dict(module.named_parameters())
        holders = [tuple(sorted({rank_of(stage) for stage in tie.stages})) for tie in ties]
        across = {ranks: None for ranks in holders if len(ranks) > 1}
        groups = {ranks: _group(comm, ranks) for ranks in across}
        self._own: list[tuple[nn.Parameter, Communicator]] = []
        self._holders: dict[str, tuple[int, ...]] = {}
        self._others: set[str] = set()
        for tie, ranks in zip(ties, holders):
            group = groups.get(ranks)
            if group is None:
                continue
            if tie.name not in own:
                raise ArgumentError(
                    f"the part of rank {comm.rank} has no parameter {tie.name!r}, which is tied "
                    f"over ranks {ranks}: pass the part that was split off"
                )
            self._own.append((own[tie.name], group))
            self._holders[tie.name] = ranks
            if comm.rank != ranks[0]:
                self._others.add(tie.name)

    @property
    def names(self) -> frozenset[str]:
        """The parameters that this rank shares with another."""
        return frozenset(self._holders)

    def holders(self, name: str) -> tuple[int, ...]:
        """Return the ranks that share a parameter, ascending; none if it is this rank's only."""
        return self._holders.get(name, ())

    def sum_gradients(self) -> None:
        """Add up the gradients of each tied parameter over its ranks, in their order.

        All of them must call this after backward; then all have the same bits. A rank that has no
        gradient counts as zeros; if none has one, there is none.
        """
        for parameter, group in self._own:
            flat = parameter.new_zeros(parameter.numel() + 1)  # the last counts who has one
            if parameter.grad is not None:
                gradient = parameter.grad
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                flat[:-1] = dense.flatten()
                flat[-1] = 1
            group.all_reduce(flat, order="rank")
            if flat[-1] > 0:
                parameter.grad = torch.empty_like(parameter).copy_(flat[:-1].view_as(parameter))

    def counts(self, name: str) -> bool:
        """Say whether this rank counts a parameter of its own in sums over all ranks.

        A norm over all parameters counts each tied one on the first rank that holds it.
        """
        return name not in self._others

    def counted(self, named: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
        """Return those of (name, tensor) that this rank counts."""
        return [(name, tensor) for name, tensor in named if self.counts(name)]


def _group(comm: Communicator, ranks: tuple[int, ...]) -> Communicator | None:
    """Return the communicator of some ranks; collective, None on the others."""
    group = comm.split(0 if comm.rank in ranks else None)
    return group if comm.rank in ranks else None
