"""An optimizer over the pieces that a rank owns, and its state by the parameters' full names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pycomm.parallel.flat_parameters import FlatParameters, OwnPiece
from pycomm.parallel.layout import Place
from pycomm.parallel.shards import Piece

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

State = dict[str, Any]
_REPLACED = ("params", "param_names")


class ShardedState:
    """Puts the pieces in the place of the parameters of an optimizer, with the state there is.

    The optimizer stays the object that it was: schedules that change its groups go on to work.

    Attributes:
        names: for each group the full names of its parameters.
        groups: for each of `parameters.pieces` the number of its group; None if it has none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: FlatParameters):
        self.optimizer, self.parameters = optimizer, parameters
        places = {id(p.parameter): p for lay in parameters.layouts for p in lay.places}
        group_of = {
            id(p): number
            for number, group in enumerate(optimizer.param_groups)
            for p in group["params"]
        }
        self.names = [
            [places[id(p)].name for p in group["params"] if id(p) in places]
            for group in optimizer.param_groups
        ]
        self.groups = [group_of.get(id(piece.place.parameter)) for piece in parameters.pieces]
        whole = dict(optimizer.state)
        optimizer.state.clear()
        self._fill_groups()
        self._take({p.name: whole[p.parameter] for p in places.values() if p.parameter in whole})

    def gather(self, comm: Communicator) -> State | None:
        """Return the whole state on rank 0, None elsewhere; collective. See `optimizer_state`."""
        mine = [self._split(piece) for piece in self.parameters.pieces]
        small = comm.all_gather_object([scalars for scalars, _ in mine])
        kinds = comm.all_gather_object([_kinds(tensors) for _, tensors in mine])
        parts = [tensors[name] for _, tensors in mine for name in sorted(tensors)]
        if comm.rank > 0:
            for part in parts:
                comm.send(part, 0)
            return None
        own = iter(parts)
        state: State = {p.name: {} for lay in self.parameters.layouts for p in lay.places}
        for rank in range(comm.size):
            for (place, piece), scalars, names in zip(
                self.pieces_of(rank), small[rank], kinds[rank]
            ):
                entry = state[place.name]
                entry.update(scalars)
                for name, dtype in names:
                    whole = entry.setdefault(name, place.like(dtype))
                    part = place.in_memory_order(whole)[piece.begin : piece.end]
                    if rank == 0:
                        part.copy_(next(own))
                    else:
                        comm.recv(rank, out=part)
        state = {name: entry for name, entry in state.items() if entry}
        return {"state": state, "groups": self._settings()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take what `gather` or `optimizer_state` returned; see `restore_optimizer`."""
        home = {name: group for group in saved["groups"] for name in group["names"]}
        for group, names in zip(self.optimizer.param_groups, self.names):
            settings = home.get(names[0], {}) if names else {}
            group.update({key: value for key, value in settings.items() if key != "names"})
        self.optimizer.state.clear()
        self._take(saved["state"])

    def put_back(self, state: Mapping[str, State]) -> None:
        """Give the optimizer the whole parameters again, with their whole state by full names."""
        whole = {p.name: p.parameter for lay in self.parameters.layouts for p in lay.places}
        self.optimizer.state.clear()
        for group, names in zip(self.optimizer.param_groups, self.names):
            group["params"] = [whole[name] for name in names]
            if "param_names" in group:
                group["param_names"] = list(names)
        for name, entry in state.items():
            self.optimizer.state[whole[name]] = dict(entry)

    def pieces_of(self, rank: int) -> list[tuple[Place, Piece]]:
        """Return the pieces of any rank, in the order of its `parameters.pieces`."""
        return [
            (layout.places[piece.slot], piece)
            for layout, shards in zip(self.parameters.layouts, self.parameters.shards)
            for piece in shards[rank]
        ]

    def _fill_groups(self) -> None:
        for number, group in enumerate(self.optimizer.param_groups):
            pieces = [
                piece for piece, of in zip(self.parameters.pieces, self.groups) if of == number
            ]
            group["params"] = [piece.parameter for piece in pieces]
            if "param_names" in group:
                group["param_names"] = [_label(piece) for piece in pieces]

    def _take(self, state: Mapping[str, State]) -> None:
        for piece, group in zip(self.parameters.pieces, self.groups):
            if group is not None and piece.place.name in state:
                values = state[piece.place.name]
                self.optimizer.state[piece.parameter] = {
                    name: _cut(piece, value) for name, value in values.items()
                }

    def _split(self, piece: OwnPiece) -> tuple[State, dict[str, torch.Tensor]]:
        """Return (what every piece of a parameter has alike, a value for each element)."""
        state = self.optimizer.state.get(piece.parameter, {})
        tensors = {name: v for name, v in state.items() if _is_cut(piece, v)}
        return {n: _copy(v) for n, v in state.items() if n not in tensors}, tensors

    def _settings(self) -> list[State]:
        return [
            {"names": names, **{k: v for k, v in group.items() if k not in _REPLACED}}
            for names, group in zip(self.names, self.optimizer.param_groups)
        ]


class Whole:
    """Parameters and optimizer state, put together from the pieces of all ranks.

    Args:
        pieces: where what comes next belongs, one piece after another.

    Attributes:
        parameters, state: by full name, what there is so far; the state as `gather` returns it.
    """

    def __init__(self, pieces: Iterable[tuple[Place, Piece]]):
        self._pieces = iter(pieces)
        self.parameters: dict[str, torch.Tensor] = {}
        self.state: dict[str, State] = {}

    def add(self, part: torch.Tensor, tensors: Mapping[str, torch.Tensor], plain: State) -> None:
        """Copy the next piece's part of the parameter, and what the optimizer keeps of it."""
        place, piece = next(self._pieces)
        _put(self.parameters, place.name, part, place, piece)
        if not tensors and not plain:
            return
        entry = self.state.setdefault(place.name, {})
        entry.update(plain)
        for name, tensor in tensors.items():
            if place.parameter.dim() and tensor.shape == (piece.end - piece.begin,):
                _put(entry, name, tensor, place, piece)
            else:
                entry[name] = tensor.clone()


def _put(into: State, name: str, part: torch.Tensor, place: Place, piece: Piece) -> None:
    if name not in into:
        into[name] = place.like(part.dtype)
    place.in_memory_order(into[name])[piece.begin : piece.end].copy_(part.view(-1))


def _kinds(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.dtype]]:
    return [(name, tensors[name].dtype) for name in sorted(tensors)]


def _label(piece: OwnPiece) -> str:
    whole = piece.end - piece.begin == piece.place.count
    return piece.place.name if whole else f"{piece.place.name}[{piece.begin}:{piece.end}]"


def _is_cut(piece: OwnPiece, value: Any) -> bool:
    shape = piece.parameter.shape
    return isinstance(value, torch.Tensor) and bool(shape) and value.shape == shape


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _cut(piece: OwnPiece, value: Any) -> Any:
    """Return the piece's part of a parameter's state; what is not of its shape belongs to all."""
    shape = piece.place.parameter.shape
    if isinstance(value, torch.Tensor) and shape and value.shape == shape:
        return piece.place.in_memory_order(value)[piece.begin : piece.end].clone()
    return _copy(value)
