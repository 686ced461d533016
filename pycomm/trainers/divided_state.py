"""State in checkpoints without a layout: whole tensors by name, whatever a rank has of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pycomm.mesh import Mesh
from pycomm.parallel.replicate import copy_from_rank_0
from pycomm.parallel.tensor import Division, full_tensor, take_shard
from pycomm.parallel.ties import TiedWeights
from pycomm.trainers.saved import Saved

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

Divisions = Mapping[str, Division]
State = dict[str, Any]
"""{"model": tensors by full name, "optimizer": see `optimizer_state`}."""


class DividedState(Saved):
    """What a rank of a mesh saves and loads: its stages, of their shards the whole tensors.

    The first pipeline writes what all have.
    """

    mesh: Mesh
    _compresses: bool
    _tied: TiedWeights
    _divided: Divisions
    _whole: dict[str, tuple[str, list[int]]]

    def _part(self) -> State | None:
        state = self._way.state()
        if self.mesh.coords["dp"] > 0 or state is None:
            return None
        mine = {"model": self.module.state_dict(), "optimizer": state}
        whole = whole_state(mine, self._divided, self.mesh["tp"])
        return whole if self.mesh.coords["tp"] == 0 else None

    def _mine(self, state: State) -> State:
        return shard_state(state, self._divided, self.mesh.coords["tp"])

    def _restore(self, saved: dict[str, Any]) -> None:
        self._way.restore(saved)

    def _leftovers(self) -> Mapping[str, Any] | None:
        """Return what compression has left; of a tied weight on the first stage that holds it."""
        left = super()._leftovers() or {}
        return {name: of for name, of in left.items() if self._tied.counts(name)}

    def _unsavable(self) -> str | None:
        if not self._compresses or self.mesh.shape["tp"] == 1:
            return None
        return (
            f"checkpoints are without a layout, but with tp={self.mesh.shape['tp']} compression "
            "leaves parts of shards: use tp=1, or leave out compression= or the checkpoint"
        )

    def _expected(self) -> dict[str, tuple[str, list[int]]]:
        return self._whole

    def _share_buffers(self) -> None:
        copy_from_rank_0(self.module, self.mesh["dp"], buffers_only=True)


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
