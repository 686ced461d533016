"""Gradients where the ranks that own a part of them can read it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from pycomm import _native
from pycomm.errors import UnsupportedError
from pycomm.parallel.flat_parameters import FlatParameters
from pycomm.parallel.gradient_hooks import on_gradient
from pycomm.parallel.layout import Place

if TYPE_CHECKING:
    from pycomm.communicator import Communicator

_Seen = tuple[int, int]


class GradientExchange:
    """Copies of the gradients of this rank, as far as others own them, in symmetric buffers.

    On n ranks (n − 1)/n of a gradient is read and written once, past the caches if it is large, as
    soon as autograd has it; the rest is read where autograd put it. `p.grad` stays autograd's.

    Attributes:
        flats: for each layout, the views of all ranks' buffers.
        last: whether gradients are final once the backward pass under way has added to them.
    """

    def __init__(self, parameters: FlatParameters, comm: Communicator):
        self.comm, self.last = comm, True
        self.parameters = parameters
        self.flats = [
            comm.views(comm.empty(layout.length, layout.dtype)) for layout in parameters.layouts
        ]
        self.slots = [
            _Slot(place, self.flats[number][comm.rank], self._foreign(number, index), comm.size)
            for number, layout in enumerate(parameters.layouts)
            for index, place in enumerate(layout.places)
        ]
        self._hook()

    def collect(self) -> list[bool]:
        """Have all gradients where they are read; say which there are. Zeros stand for the others.

        They are there on all ranks after the next collective.
        """
        return [slot.collect() for slot in self.slots]

    @property
    def foreign_bytes(self) -> int:
        """How much of the gradients of this rank others read."""
        return sum(slot.foreign_bytes for slot in self.slots)

    def own_addresses(self) -> dict[int, int]:
        """After `collect`: where this rank's gradient of a parameter starts, by its `id`."""
        return {id(slot.place.parameter): slot.address for slot in self.slots}

    def _foreign(self, number: int, index: int) -> list[tuple[int, int]]:
        """Return the ranges of elements of a parameter that other ranks own."""
        shards = self.parameters.shards[number]
        return [
            (piece.begin, piece.end)
            for rank, shard in enumerate(shards)
            for piece in shard
            if rank != self.comm.rank and piece.slot == index and piece.end > piece.begin
        ]

    def _hook(self) -> None:
        for number, slot in enumerate(self.slots):
            on_gradient(slot.place.parameter, self, partial(GradientExchange._ready, number=number))

    def _ready(self, number: int) -> None:
        if self.last:
            self.slots[number].collect()


class _Slot:
    """One parameter's gradient on this rank."""

    def __init__(
        self, place: Place, flat: torch.Tensor, foreign: list[tuple[int, int]], ranks: int
    ):
        self.place, self._flat = place, place.view(flat)
        self._item, self._touched = flat.itemsize, 2 * ranks * flat.nbytes
        self._foreign = _merged(foreign)
        self.foreign_bytes = self._item * sum(end - begin for begin, end in self._foreign)
        self._seen: _Seen | None = None
        self._target = self.address = self._flat.data_ptr()

    def collect(self) -> bool:
        """Copy what others own of the gradient, unless that was done since it last changed."""
        grad = self.place.parameter.grad
        if grad is None:
            self._clear()
            return False
        seen = grad.data_ptr(), grad._version
        if seen != self._seen:
            self._copy(grad)
            self._seen = seen
        return True

    def forget(self) -> None:
        """Other gradients may come to lie where the last one did."""
        self._seen = None

    def _copy(self, grad: torch.Tensor) -> None:
        if grad.layout is not torch.strided:
            raise UnsupportedError(
                f"the gradient of {self.place.name!r} is {grad.layout}: build its layer with "
                f"sparse=False"
            )
        if grad.dtype != self._flat.dtype or grad.stride() != self.place.strides:
            self._flat.copy_(grad.detach())
            self.address = self._target
            return
        self.address = address = grad.data_ptr()
        for begin, end in self._foreign:
            at, nbytes = begin * self._item, (end - begin) * self._item
            _native.copy(self._target + at, address + at, nbytes, self._touched)

    def _clear(self) -> None:
        self._flat.zero_()
        self.address, self._seen = self._target, None


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in ranges:
        if merged and merged[-1][1] == begin:
            begin = merged.pop()[0]
        merged.append((begin, end))
    return merged
