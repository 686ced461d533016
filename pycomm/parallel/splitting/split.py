"""Splitting a model into parts, by what its layers cost or at named modules."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pycomm.errors import ArgumentError
from pycomm.parallel.partition import partition
from pycomm.parallel.parts import Part
from pycomm.parallel.splitting.balance import Costs, Sample, costs_of
from pycomm.parallel.splitting.blocks import Leaves
from pycomm.parallel.splitting.build import build_parts
from pycomm.parallel.splitting.cuts import ranges_of
from pycomm.parallel.splitting.explain import explain
from pycomm.parallel.splitting.flow import Flow
from pycomm.parallel.splitting.in_place import refuse_hidden_changes
from pycomm.parallel.splitting.reading import Model, read
from pycomm.parallel.splitting.shared import find_ties, shared_buffers
from pycomm.parallel.ties import Tie

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A model in parts.

    Attributes:
        flow: the model that was split, and its layers.
        parts: in order; their modules are the model's, nothing is copied.
        ties: the parameters that several parts hold.
        names: of all layers.
        ranges: the layers of each part.
        costs: of each layer.
        unit: of the costs: "parameters", "s", "bytes" or "".
        reason: what the cuts were chosen by.
    """

    flow: Flow
    parts: tuple[Part, ...]
    ties: tuple[Tie, ...]
    names: tuple[str, ...]
    ranges: tuple[range, ...]
    costs: tuple[float, ...]
    unit: str
    reason: str

    @property
    def cuts(self) -> list[str]:
        """The layers at which parts begin, but for the first: what `cuts=` gives this split."""
        return [self.names[r.start] for r in self.ranges[1:]]

    def explain(self) -> str:
        """Return a table: for each part its layers, parameters, cost, share, what it takes."""
        return explain(self)


@dataclass(frozen=True)
class Choice:
    """Where a model is to be cut, and why.

    Attributes:
        flow: the model, and its layers.
        ranges: the layers of each part.
        costs: of each layer.
        reason: in words.
    """

    flow: Flow
    ranges: tuple[range, ...]
    costs: Costs
    reason: str


def split(
    model: Model,
    stages: int,
    balance: str | Sequence[float] = "params",
    cuts: Sequence[str] | None = None,
    *,
    leaves: Leaves = (),
    inputs: Sequence[str] | None = None,
    sample: Sample | None = None,
) -> Split:
    """Split a model into `stages` parts of consecutive layers.

    Layers are the elements of an nn.Sequential, ModuleList or list; of any other model, which is
    traced, the calls of modules that stay whole (those of torch.nn, elements of containers).
    The most expensive part is as cheap as can be, see `partition`.

    Args:
        model: on any device, also "meta".
        stages: how many parts.
        balance: "params", "time" (forward and backward, measured on `sample`), "memory"
            (parameters, gradients, optimizer state and activations), or one cost ≥ 0 a layer.
        cuts: the full names of modules at which the second, third … part begins, instead.
        leaves: modules (names or classes) that stay whole.
        inputs: the parameters of forward that get values; by default those without a default.
        sample: what "time" and "memory" are measured with, see Sample.

    Raises:
        ArgumentError: there are fewer layers than parts; the model cannot be traced; a cut goes
            through a tie that cannot be resolved, or hides a change in place; a value is wrong.
    """
    return assemble(
        choose(model, stages, balance, cuts, leaves=leaves, inputs=inputs, sample=sample)
    )


def choose(
    model: Model,
    stages: int,
    balance: str | Sequence[float] = "params",
    cuts: Sequence[str] | None = None,
    *,
    leaves: Leaves = (),
    inputs: Sequence[str] | None = None,
    sample: Sample | None = None,
) -> Choice:
    """Return where `split` cuts a model; its layers may be replaced before it is assembled."""
    if cuts is not None and len(cuts) != stages - 1:
        raise ArgumentError(
            f"cuts={list(cuts)} make {len(cuts) + 1} parts, but there are {stages} stages: "
            f"name {stages - 1} modules"
        )
    flow = read(model, stages, cuts or (), leaves, inputs)
    costs = costs_of(flow, balance, sample)
    if cuts is None:
        ranges = partition(costs.values, stages)
        return Choice(flow, tuple(ranges), costs, f"balanced by {costs.what}")
    names = [layer.name for layer in flow.layers]
    return Choice(flow, tuple(ranges_of(cuts, names)), costs, "cut by name")


def assemble(choice: Choice) -> Split:
    """Return the split of a model at the chosen cuts; see `split`."""
    flow = choice.flow
    refuse_hidden_changes(flow, choice.ranges)
    parts = build_parts(flow, choice.ranges)
    for name in shared_buffers(parts):
        _logger.warning("buffer %r is in several parts: forward must not change it", name)
    return Split(
        flow,
        tuple(parts),
        tuple(find_ties(flow.root, parts)),
        tuple(layer.name for layer in flow.layers),
        choice.ranges,
        tuple(choice.costs.values),
        choice.costs.unit,
        choice.reason,
    )
