"""A generation: what every rank owned after one step, in memory that outlives the rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pycomm import _native
from pycomm.parallel.bucket import ALIGNMENT_BYTES
from pycomm.parallel.flat_parameters import OwnPiece

PARAMETER = ""
"""The name of the piece itself beside the names of its state."""


@dataclass(frozen=True)
class Row:
    """What there is of one piece.

    Attributes:
        tensors: (name, dtype, shape) of the part of the parameter, PARAMETER, and of its state.
        plain: what else the optimizer keeps of it.
    """

    tensors: tuple[tuple[str, torch.dtype, torch.Size], ...]
    plain: dict[str, Any]


def tensors_of(piece: OwnPiece, state: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """Return the piece, named PARAMETER, and the tensors that an optimizer keeps of it, by name."""
    kept = [(name, state[name]) for name in sorted(state) if torch.is_tensor(state[name])]
    return [(PARAMETER, piece.parameter.detach()), *kept]


def row_of(tensors: Sequence[tuple[str, torch.Tensor]], state: dict[str, Any]) -> Row:
    """Return the row for what `tensors_of` returned."""
    plain = {name: value for name, value in state.items() if not torch.is_tensor(value)}
    return Row(tuple((name, x.dtype, x.shape) for name, x in tensors), plain)


def size_of(rows: Sequence[Row]) -> int:
    """Return the bytes that rows take, each tensor on a cache line."""
    return sum(_room(dtype, shape) for row in rows for _, dtype, shape in row.tensors)


def read(rows: Sequence[Row], flat: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Yield for each row its tensors by name, views of a buffer of bytes."""
    at = 0
    for row in rows:
        found = {}
        for name, dtype, shape in row.tensors:
            part = flat[at : at + shape.numel() * dtype.itemsize]
            found[name] = part.view(dtype).view(shape)
            at += _room(dtype, shape)
        yield found


def _room(dtype: torch.dtype, shape: torch.Size) -> int:
    nbytes = shape.numel() * dtype.itemsize
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Generation:
    """Buffers with what ranks owned after one step.

    Attributes:
        rows: of every rank; none before the first step.
        flats: by rank, the buffers that can be read here: that of this rank, and others' if they
            lie in shared memory or were sent.
    """

    def __init__(self) -> None:
        self.rows: list[list[Row]] = []
        self.flats: dict[int, torch.Tensor] = {}
        self._views: list[torch.Tensor] = []

    def open(self, rows: list[list[Row]], flats: dict[int, torch.Tensor], rank: int) -> None:
        """Take buffers for what ranks own from now on; this one is `rank`."""
        self.rows, self.flats = rows, flats
        self._views = [x for found in read(rows[rank], flats[rank]) for x in found.values()]

    def write(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copy what this rank owns, in the order of its rows."""
        touched = 2 * sum(view.nbytes for view in self._views)
        for view, x in zip(self._views, tensors):
            if x.device.type == "cpu" and x.is_contiguous():
                _native.copy(view.data_ptr(), x.data_ptr(), x.nbytes, touched)
            else:
                view.copy_(x)
