"""What layers cost: parameters, measured time, memory, or what the user says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pycomm.errors import ArgumentError
from pycomm.parallel.memory import Optimizer, state_bytes
from pycomm.parallel.profile import REPETITIONS, LayerProfile, profile
from pycomm.parallel.splitting.flow import Flow

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

BALANCES = ("params", "time", "memory")


@dataclass(frozen=True)
class Sample:
    """What layers are measured with.

    Attributes:
        inputs: a microbatch of the model's inputs; None, and activations are not counted.
        in_flight: how many microbatches' activations a part holds at once, for "memory".
        optimizer: the factory, for the size of its state, for "memory".
        comm: the ranks that agree on the costs: rank 0 measures; None for this one alone.
        device: where it does; None: where the model is.
        measures: see `profile`.
    """

    inputs: Any = None
    in_flight: int = 1
    optimizer: Optimizer = lambda named: torch.optim.AdamW(named)
    comm: Communicator | None = None
    device: torch.device | None = None
    measures: bool | None = None

    def profiled(self, flow: Flow, repetitions: int = REPETITIONS) -> list[LayerProfile]:
        """Return what each layer was measured to cost; every rank must call this."""
        return profile(flow, self.inputs, self.comm, repetitions, self.device, self.measures)


@dataclass(frozen=True)
class Costs:
    """What each layer costs, in which unit, and in words."""

    values: list[float]
    unit: str
    what: str


def costs_of(flow: Flow, balance: str | Sequence[float], sample: Sample | None) -> Costs:
    """Return what each layer of a flow costs.

    Raises:
        ArgumentError: an unknown name, costs that do not fit the layers, or nothing to measure
            with.
    """
    if not isinstance(balance, str):
        return _given(flow, balance)
    if balance == "params":
        counts = [float(sum(p.numel() for p in flow.tensors(layer))) for layer in flow.layers]
        return Costs(counts, "parameters", "the number of parameters")
    if balance not in BALANCES:
        names = ", ".join(map(repr, BALANCES))
        raise ArgumentError(f"balance={balance!r}: choose {names} or pass a cost for each layer")
    sample = sample or Sample()
    if balance == "memory":
        return Costs(memory_costs(flow, sample), "bytes", "memory")
    if sample.inputs is None:
        raise ArgumentError("balance='time' needs sample=, with a microbatch of inputs to measure")
    measured = sample.profiled(flow)
    return Costs([m.seconds for m in measured], "s", "measured time")


def memory_costs(flow: Flow, sample: Sample) -> list[float]:
    """Return the bytes that each layer needs: parameters, gradients, state and activations.

    What several layers share is counted for each of them.
    """
    states = state_bytes(sample.optimizer, flow.root.named_parameters())
    name_of = {id(p): name for name, p in flow.root.named_parameters()}
    costs = []
    for layer in flow.layers:
        parameters = list(flow.tensors(layer))
        own = sum(p.nbytes * (1 + p.requires_grad) for p in parameters)
        costs.append(float(own + sum(states.get(name_of[id(p)], 0) for p in parameters)))
    if sample.inputs is None:
        return costs
    measured = sample.profiled(flow)
    return [cost + m.activation_bytes * sample.in_flight for cost, m in zip(costs, measured)]


def _given(flow: Flow, balance: Sequence[float]) -> Costs:
    costs = [float(cost) for cost in balance]
    if len(costs) != len(flow.layers) or not all(0 <= cost < float("inf") for cost in costs):
        names = ", ".join(layer.name for layer in flow.layers)
        raise ArgumentError(
            f"balance={costs} does not give each of the {len(flow.layers)} layers a cost ≥ 0: "
            f"they are {names}"
        )
    return Costs(costs, "", "the given costs")
