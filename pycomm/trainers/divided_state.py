"""State in checkpoints without a layout: whole tensors by name, whatever a rank has of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pycomm.parallel.tensor import Division, full_tensor, take_shard

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Divisions = Mapping[str, Division]
State = dict[str, Any]
"""{"model": tensors by full name, "optimizer": see `optimizer_state`}."""


def whole_state(state: State, divided: Divisions, comm: Communicator) -> State:
    """Return a part's state with whole tensors, from those of a tensor-parallel group; collective.

    Args:
        state: of this rank.
        divided: the names of the parameters that are divided.
        comm: the group.
    """
    return _mapped(state, divided, lambda x, how: full_tensor(x, how, comm), _is_shard(comm.rank))


def shard_state(state: State, divided: Divisions, rank: int) -> State:
    """Return a rank's part of what `whole_state` returned."""
    return _mapped(state, divided, lambda x, how: take_shard(x, how, rank), _is_whole)


def _mapped(
    state: State,
    divided: Divisions,
    change: Callable[[torch.Tensor, Division], torch.Tensor],
    changes: Callable[[Any, Division], bool],
) -> State:
    def changed(name: str, value: Any) -> Any:
        how = divided.get(name)
        return change(value, how) if how is not None and changes(value, how) else value

    model = {name: changed(name, value) for name, value in state["model"].items()}
    kept = state["optimizer"]["state"]
    optimizer = {
        name: {key: changed(name, kept[name][key]) for key in sorted(kept[name])}
        for name in sorted(kept)
    }
    return {**state, "model": model, "optimizer": {**state["optimizer"], "state": optimizer}}


def _is_shard(rank: int) -> Callable[[Any, Division], bool]:
    return lambda value, how: _has_shape(value, how.shard_shape(rank))


def _is_whole(value: Any, how: Division) -> bool:
    return _has_shape(value, how.shape)


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and tuple(value.shape) == shape
