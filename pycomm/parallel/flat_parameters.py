"""Parameters in flat symmetric buffers, and the pieces of them that this rank owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pycomm.errors import UnsupportedError
from pycomm.parallel.layout import Layout, Place, lay_out
from pycomm.parallel.shards import Piece, plan_shards

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


@dataclass
class OwnPiece:
    """A piece of a parameter that this rank owns, as a parameter for an optimizer.

    Attributes:
        layout: the number of the layout that it is in.
        place: of the whole parameter.
        begin, end: which of its elements.
        parameter: a flat view of the elements (of no dimensions if the parameter has none).
    """

    layout: int
    place: Place
    begin: int
    end: int
    parameter: nn.Parameter

    @property
    def at(self) -> int:
        """Where it starts in a flat buffer."""
        return self.place.offset + self.begin


class FlatParameters:
    """The parameters of a model in flat symmetric buffers, their data views of these.

    The parameters keep their values: those of rank 0 must have been copied to all ranks before.

    Args:
        parameters: (name, parameter) pairs, those that are trained.
        comm: the ranks.
        share: whether all ranks, of one host, use the buffer of rank 0.

    Attributes:
        layouts: where what lies.
        flats: a buffer for each.
        shards: for each layout the pieces of all ranks.
        pieces: those of this rank.

    Raises:
        UnsupportedError: `share` on ranks that share no memory.
    """

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], comm: Communicator, *, share: bool
    ):
        self.comm, self.share = comm, share
        self.layouts = lay_out(parameters)
        self.flats = [self._allocate(layout) for layout in self.layouts]
        self.shards = [
            plan_shards([p.count for p in lay.places], comm.size) for lay in self.layouts
        ]
        for layout, flat in zip(self.layouts, self.flats):
            self._move(layout, flat)
        comm.barrier()  # the shared copy is complete
        self.pieces = [
            self._own(number, piece)
            for number, shards in enumerate(self.shards)
            for piece in shards[comm.rank]
        ]
        self._addresses = self._where()

    def check_unmoved(self) -> None:
        """Return if the parameters still lie in the buffers.

        Raises:
            UnsupportedError: one was given other data, for instance by `module.to(…)`.
        """
        for (name, p, address), now in zip(self._addresses, self._now()):
            if now != address:
                raise UnsupportedError(
                    f"parameter {name!r} was given other data, {p.dtype} on {p.device} (rank "
                    f"{self.comm.rank}): move and convert the model before the trainer is made"
                )

    def _allocate(self, layout: Layout) -> torch.Tensor:
        if not self.share:
            return self.comm.empty(layout.length, layout.dtype, device=_device(layout))
        if layout.device.type != "cpu":
            raise UnsupportedError(
                f"share=True is for parameters in host memory, {layout.places[0].name!r} is on "
                f"{layout.device} (rank {self.comm.rank}): pass share=False"
            )
        mine = self.comm.empty(layout.length if self.comm.rank == 0 else 0, layout.dtype)
        return self.comm.views(mine)[0]

    def _move(self, layout: Layout, flat: torch.Tensor) -> None:
        for place in layout.places:
            view = place.view(flat)
            if not self.share or self.comm.rank == 0:
                view.copy_(place.parameter.detach())
            place.parameter.data = view

    def _own(self, number: int, piece: Piece) -> OwnPiece:
        place = self.layouts[number].places[piece.slot]
        begin, end = place.offset + piece.begin, place.offset + piece.end
        flat = self.flats[number][begin:end]
        data = flat if place.parameter.dim() else flat.view(())
        own = nn.Parameter(data, requires_grad=True)
        return OwnPiece(number, place, piece.begin, piece.end, own)

    def _where(self) -> list[tuple[str, nn.Parameter, int]]:
        places = [place for layout in self.layouts for place in layout.places]
        return [(p.name, p.parameter, p.parameter.data_ptr()) for p in places]

    def _now(self) -> list[int]:
        return [p.data_ptr() for _, p, _ in self._addresses]


def _device(layout: Layout) -> str | None:
    return None if layout.device.type == "cpu" else layout.device.type
