"""Stages: the parts of the model that a user gives, in any form, and how they get their values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.errors import ArgumentError
from pycomm.parallel.initial_values.fill import Init
from pycomm.parallel.initial_values.source import Source, source_of
from pycomm.parallel.joined import joined
from pycomm.parallel.memory import Need, Optimizer, check_memory, need_of, parse_bytes, ranks_within
from pycomm.parallel.partition import given_parts
from pycomm.parallel.parts import Part
from pycomm.parallel.placement import place
from pycomm.parallel.random_states import random_states, restore_random_states
from pycomm.parallel.replicate import on_every_rank
from pycomm.parallel.routes import routes_of
from pycomm.parallel.splitting.balance import Sample, memory_costs
from pycomm.parallel.splitting.blocks import Leaves
from pycomm.parallel.splitting.reading import Model, read
from pycomm.parallel.splitting.split import Choice, Split, assemble, choose
from pycomm.parallel.tensor.division import Division, take_shard
from pycomm.parallel.ties import Tie
from pycomm.parallel.values import describe

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Given = Model | Sequence[Part] | Callable[[], Model]
"""A model, the parts of one, or a factory that returns a model."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cutting:
    """How a model is to be split; see `splitting.split` and `initial_values.source_of`.

    Attributes:
        balance: None is "time" where there is a sample, else "params".
        sample: a microbatch of inputs; None measures nothing.
    """

    balance: str | Sequence[float] | None = None
    cuts: Sequence[str] | None = None
    leaves: Leaves = ()
    inputs: Sequence[str] | None = None
    sample: Any = None
    init: Init | None = None
    seed: int = 0

    def told(self) -> tuple[Any, ...]:
        """Return what must be the same on all ranks."""
        leaves = [leaf if isinstance(leaf, str) else leaf.__name__ for leaf in self.leaves]
        balance = self.balance if isinstance(self.balance, str) else list(self.balance or ())
        cuts = None if self.cuts is None else list(self.cuts)
        inputs, sample = list(self.inputs or ()), describe(self.sample)
        return balance, cuts, sorted(leaves), inputs, sample, self.seed


def check_replica_memory(
    module: nn.Module,
    optimizer: Optimizer,
    comm: Communicator,
    limit: int | str | None,
    shard: bool | None,
) -> None:
    """Return if every rank has memory for a whole model; every rank must call this.

    Args:
        module: on any device, also "meta".
        optimizer: the factory.
        comm: the ranks.
        limit: of each rank, in bytes or as `parse_bytes` takes it; None: there is none.
        shard: whether the ranks divide the optimizer's state; None: where they share memory.

    Raises:
        ArgumentError: on every rank; says what is needed, and how many ranks of model parallelism
            would do.
    """

    def ranks_that_do(limit: int) -> int | None:
        try:
            flow = read(module)
        except ArgumentError:
            return None
        return ranks_within(memory_costs(flow, Sample(optimizer=optimizer)), limit)

    if limit is not None:
        shared = state_ranks(comm, shard)
        check_memory(comm, limit, lambda: need_of(module, optimizer, 0, shared), ranks_that_do)


def state_ranks(comm: Communicator, shard: bool | None) -> int:
    """Return how many replicas divide an optimizer's state."""
    divides = comm.shares_memory if shard is None else shard
    return comm.size if divides else 1


class Stages:
    """The stages of a model; every rank must make one.

    Attributes:
        whole: the model, on the meta device if it has no memory yet; its layers may be replaced
            until `build`.
        deferred: whether it has none.
        device: where this rank trains.
        parts: in order; after `build`.
        ties: the parameters that several parts hold; after `build`.
        split: what was chosen and why; None for parts that the user has made.

    Args:
        given: the model.
        count: how many stages.
        how: where to cut.
        comm: the ranks.
        held: of how many microbatches each stage keeps activations at most.
        optimizer: the factory, for the size of its state.
        device: see `placement.place`.
    """

    def __init__(
        self,
        given: Given,
        count: int,
        how: Cutting,
        comm: Communicator,
        held: Sequence[int],
        optimizer: Optimizer,
        device: str | torch.device | None = None,
    ):
        self._comm, self._held, self._optimizer = comm, held, optimizer
        self._sample = Sample()
        self._source: Source | None = None
        self._choice: Choice | None = None
        self.split: Split | None = None
        self.ties: tuple[Tie, ...] = ()
        if callable(given) and not isinstance(given, nn.Module):
            restore_random_states(comm.broadcast_object(random_states(), 0))
        on_every_rank(comm, lambda: self._read(given, count, how, device), "reading the model")

    def build(self) -> None:
        """Make the parts."""
        if self._choice is None:
            return
        self.split = assemble(self._choice)
        self.parts, self.ties = self.split.parts, self.split.ties
        if self._comm.rank == 0:
            _logger.info("rank 0: %s", self.split.explain())

    def check_memory(
        self,
        limit: int | str | None,
        mine: Sequence[int],
        state_ranks: int = 1,
        measures: bool | None = None,
    ) -> None:
        """Return if every rank has memory for its stages; every rank must call this.

        Args:
            limit: of each rank, in bytes or as `parse_bytes` takes it; None: there is none.
            mine: the stages of this rank.
            state_ranks: how many ranks divide the optimizer's state.
            measures: whether this rank takes part in measuring activations, see `profile`.

        Raises:
            ArgumentError: on every rank; says what is needed, and how many ranks would do.
        """
        if limit is None:
            return
        self._sample = replace(self._sample, measures=measures)
        activations = self._activation_bytes()
        module = joined([self.parts[stage].module for stage in mine])
        own = sum(activations[stage] for stage in mine)

        def need() -> Need:
            return need_of(module, self._optimizer, own, state_ranks)

        check_memory(self._comm, limit, need, self._ranks_that_do)

    def fill(
        self, module: nn.Module, divided: dict[str, Division], place: int, comm: Communicator
    ) -> None:
        """Give this rank's stages values, if they have none; every rank must call this.

        Args:
            module: the stages of this rank.
            divided: which parameters are divided over a tensor-parallel group, by full name.
            place: of this rank in the group.
            comm: the ranks.
        """

        def shard(name: str, whole: torch.Tensor) -> torch.Tensor:
            return take_shard(whole, divided[name], place) if name in divided else whole

        source = self._source
        if source is not None and source.deferred:
            on_every_rank(comm, lambda: source.fill(module, shard), "giving the model values")

    def _read(
        self, given: Given, count: int, how: Cutting, device: str | torch.device | None
    ) -> None:
        """Take in what the user has given, and choose the cuts of what is not in parts."""
        comm, parts = self._comm, list(given) if isinstance(given, (list, tuple)) else []
        if parts and all(isinstance(part, Part) for part in parts):
            self.parts = tuple(given_parts(parts, count))
            routes_of(self.parts)  # has something to say if they do not fit together
            self.whole, self.deferred = joined([part.module for part in parts]), False
            self.device = place(self.whole, comm, device)
            return
        self._source = source_of(given, how.init, how.seed)  # type: ignore[arg-type]
        self.whole, self.deferred = self._source.model, self._source.deferred
        self.device = place(self.whole, comm, device or ("cpu" if self.deferred else None))
        self._sample = Sample(how.sample, max(self._held), self._optimizer, comm, self.device)
        self._choice = self._choose(count, how)

    def _choose(self, count: int, how: Cutting) -> Choice:
        measured = "params" if how.sample is None else "time"
        balance = measured if how.balance is None else how.balance
        return choose(
            self.whole,
            count,
            balance,
            how.cuts,
            leaves=how.leaves,
            inputs=how.inputs,
            sample=self._sample,
        )

    def _activation_bytes(self) -> list[int]:
        """Return the bytes of activations that each stage keeps at most, as far as is known."""
        if self.split is None or self._sample.inputs is None:
            return [0] * len(self.parts)
        rows = self._sample.profiled(self.split.flow, 1)
        return [
            held * sum(rows[index].activation_bytes for index in members)
            for held, members in zip(self._held, self.split.ranges)
        ]

    def _ranks_that_do(self, limit: int) -> int | None:
        if self.split is None:
            return None
        return ranks_within(memory_costs(self.split.flow, self._sample), parse_bytes(limit))
