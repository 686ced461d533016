"""What layers cost: parameters, measured time, memory, or what the user says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycomm.errors import ArgumentError
from pycomm.parallel.profile import profile
from pycomm.parallel.splitting.flow import Flow, Layer

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

BALANCES = ("params", "time", "memory")


@dataclass(frozen=True)
class Sample:
    """What layers are measured with.

    Attributes:
        inputs: a microbatch of the model's inputs.
        in_flight: how many microbatches' activations a part holds at once, for "memory".
        state_ratio: bytes of optimizer state for each byte of a parameter.
        comm: the ranks that agree on the costs: rank 0 measures; None for this one alone.
    """

    inputs: Any
    in_flight: int = 1
    state_ratio: float = 2.0
    comm: Communicator | None = None


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
    if sample is None:
        raise ArgumentError(f"balance={balance!r} needs sample=, a microbatch of inputs to measure")
    return _measured(flow, balance, sample)


def state_bytes(flow: Flow, layer: Layer, state_ratio: float) -> float:
    """Return the bytes of a layer's parameters, gradients and optimizer state."""
    return sum(
        p.nbytes * (2 + state_ratio) if p.requires_grad else p.nbytes for p in flow.tensors(layer)
    )


def _given(flow: Flow, balance: Sequence[float]) -> Costs:
    costs = [float(cost) for cost in balance]
    if len(costs) != len(flow.layers) or not all(0 <= cost < float("inf") for cost in costs):
        names = ", ".join(layer.name for layer in flow.layers)
        raise ArgumentError(
            f"balance={costs} does not give each of the {len(flow.layers)} layers a cost ≥ 0: "
            f"they are {names}"
        )
    return Costs(costs, "", "the given costs")


def _measured(flow: Flow, balance: str, sample: Sample) -> Costs:
    measured = profile(flow, sample.inputs, sample.comm)
    if balance == "time":
        return Costs([m.seconds for m in measured], "s", "measured time")
    return Costs(
        [
            state_bytes(flow, layer, sample.state_ratio) + m.activation_bytes * sample.in_flight
            for layer, m in zip(flow.layers, measured)
        ],
        "bytes",
        "memory",
    )
