"""A generation: what every rank owned after one step, in memory that outlives the rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pycomm import _native
from pycomm.parallel.bucket import ALIGNMENT_BYTES
from pycomm.parallel.flat_parameters import OwnPiece
from pycomm.parallel.owners import NOBODY, Owners
from pycomm.parallel.sharded_state import Whole

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

PARAMETER = ""
"""The name of the piece itself beside the names of its state."""


class Kind(NamedTuple):
    """What a tensor is: its name, dtype, shape and type of device."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    device: str


@dataclass(frozen=True)
class Row:
    """What there is of one piece.

    Attributes:
        tensors: the part of the parameter, PARAMETER, and its state.
        plain: what else the optimizer keeps of it.
    """

    tensors: tuple[Kind, ...]
    plain: dict[str, Any]


def tensors_of(piece: OwnPiece, state: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """Return the piece, named PARAMETER, and the tensors that an optimizer keeps of it, by name."""
    kept = [(name, state[name]) for name in sorted(state) if torch.is_tensor(state[name])]
    return [(PARAMETER, piece.parameter.detach()), *kept]


def row_of(tensors: Sequence[tuple[str, torch.Tensor]], state: dict[str, Any]) -> Row:
    """Return the row for what `tensors_of` returned."""
    plain = {name: value for name, value in state.items() if not torch.is_tensor(value)}
    kinds = (Kind(name, x.dtype, x.shape, x.device.type) for name, x in tensors)
    return Row(tuple(kinds), plain)


def size_of(rows: Sequence[Row]) -> int:
    """Return the bytes that rows take, each tensor on a cache line."""
    return sum(_room(kind) for row in rows for kind in row.tensors)


def read(rows: Sequence[Row], flat: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Yield for each row its tensors by name, views of a buffer of bytes in host memory."""
    at = 0
    for row in rows:
        found = {}
        for kind in row.tensors:
            part = flat[at : at + kind.shape.numel() * kind.dtype.itemsize]
            found[kind.name] = part.view(kind.dtype).view(kind.shape)
            at += _room(kind)
        yield found


def room(rows: Sequence[Row]) -> torch.Tensor:
    """Return a buffer of bytes for rows."""
    return torch.empty(size_of(rows), dtype=torch.uint8)


def _moved(row: Row, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what `read` yielded for a row where it came from; not copied if that is the host."""
    return {kind.name: tensors[kind.name].to(kind.device) for kind in row.tensors}


def _room(kind: Kind) -> int:
    nbytes = kind.shape.numel() * kind.dtype.itemsize
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Generation:
    """Buffers in host memory with what ranks owned after one step.

    It stays what it was when those ranks have become fewer, and go on with other numbers.

    Attributes:
        owners: the ranks; nobody before the first step.
        rows: of every rank.
        flats: by rank, the buffers that can be read here: that of this rank, and others' if they
            lie in shared memory or were sent.
    """

    def __init__(self) -> None:
        self.owners = NOBODY
        self.rows: list[list[Row]] = []
        self.flats: dict[int, torch.Tensor] = {}
        self._views: list[torch.Tensor] = []

    def open(self, owners: Owners, rows: list[list[Row]], flats: dict[int, torch.Tensor]) -> None:
        """Take buffers for what ranks own from now on."""
        self.owners, self.rows, self.flats = owners, rows, flats
        mine = read(rows[owners.rank], flats[owners.rank])
        self._views = [x for found in mine for x in found.values()]

    def fits(self, owners: Owners, rows: list[Row]) -> bool:
        """Say whether it has room for what this rank owns."""
        return self.owners is owners and rows == self.rows[owners.rank]

    def put_together(self, comm: Communicator, alive: Sequence[int]) -> Whole:
        """Return what all of its ranks owned; every survivor must call this.

        Args:
            comm: the survivors.
            alive: the numbers that they had.

        Raises:
            StateLostError: nobody has a copy of what a dead rank owned.
        """
        holders = self.owners.holders(alive)
        whole = Whole(piece for pieces in self.owners.pieces for piece in pieces)
        for rank, rows in enumerate(self.rows):
            flat = self.flats[rank] if rank in self.flats else room(rows)
            if not self.owners.mapped:
                comm.broadcast(flat, alive.index(holders[rank]))
            for row, found in zip(rows, read(rows, flat)):
                tensors = _moved(row, found)
                whole.add(tensors.pop(PARAMETER), tensors, row.plain)
        return whole

    def write(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy what this rank owns, in the order of its rows."""
        touched = 2 * sum(view.nbytes for view in self._views)
        for view, x in zip(self._views, tensors):
            if x.device.type == "cpu" and x.is_contiguous():
                _native.copy(view.data_ptr(), x.data_ptr(), x.nbytes, touched)
            else:
                view.copy_(x)
