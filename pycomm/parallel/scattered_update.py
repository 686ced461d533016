"""The update on shards by collectives: for any elementwise optimizer, hosts and devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pycomm.errors import UnsupportedError
from pycomm.parallel.flat_parameters import FlatParameters
from pycomm.parallel.gradient_norm import clip_gradients, squares_of
from pycomm.parallel.layout import Layout, Place
from pycomm.parallel.shards import Piece
from pycomm.parallel.whole_gradient import WholeGradient

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def chunk_counts(layout: Layout, shards: list[list[Piece]]) -> list[int]:
    """Return how much of a flat buffer each rank owns, its share of the gaps between included."""
    starts = [layout.length]
    for rank in range(len(shards) - 1, 0, -1):
        first = shards[rank][0] if shards[rank] else None
        starts.append(layout.places[first.slot].offset + first.begin if first else starts[-1])
    starts.append(0)
    starts.reverse()
    return [end - begin for begin, end in zip(starts, starts[1:])]


class ScatteredUpdate:
    """reduce_scatter, the optimizer's step on the pieces of this rank, all_gather.

    Args:
        optimizer: over the pieces of this rank, see ShardedState.
        whole: the gradient that this is a part of.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: FlatParameters,
        comm: Communicator,
        whole: WholeGradient,
    ):
        self.optimizer, self.parameters, self.comm = optimizer, parameters, comm
        self._whole = whole
        self._places = [p for layout in parameters.layouts for p in layout.places]
        self._counts = [
            chunk_counts(layout, shards)
            for layout, shards in zip(parameters.layouts, parameters.shards)
        ]
        self._starts = [sum(counts[: comm.rank]) for counts in self._counts]
        self._gradients = [self._flat(layout, layout.length) for layout in parameters.layouts]
        self._chunks = [
            self._flat(layout, counts[comm.rank])
            for layout, counts in zip(parameters.layouts, self._counts)
        ]

    def step(
        self, scale: float, clip_norm: float | None, accepts: Callable[[float], bool] | None
    ) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; see Update.step."""
        self.parameters.check_unmoved()
        used = self._collect()
        for flat, chunk, counts in zip(self._gradients, self._chunks, self._counts):
            self.comm.reduce_scatter(flat, counts=counts, out=chunk)
            if scale != 1:
                chunk.mul_(scale)
        self._give(used)
        norm = None if clip_norm is None and accepts is None else self._clip(clip_norm)
        if norm is None or accepts is None or accepts(norm):
            self.optimizer.step()
            self._publish()
        return norm

    def _flat(self, layout: Layout, count: int) -> torch.Tensor:
        device = None if layout.device.type == "cpu" else layout.device.type
        return self.comm.empty(count, layout.dtype, device=device).zero_()

    def _collect(self) -> set[int]:
        """Copy all gradients, zeros for none; return the `id`s of parameters that have one."""
        for layout, flat in zip(self.parameters.layouts, self._gradients):
            for place in layout.places:
                _copy_gradient(place, place.view(flat))
        used = torch.tensor([p.parameter.grad is not None for p in self._places], dtype=torch.uint8)
        self.comm.all_reduce(used, op="max")
        return {id(p.parameter) for p, flag in zip(self._places, used.tolist()) if flag}

    def _give(self, used: set[int]) -> None:
        for piece in self.parameters.pieces:
            at = piece.at - self._starts[piece.layout]
            part = self._chunks[piece.layout][at : at + piece.end - piece.begin]
            has = id(piece.place.parameter) in used
            piece.parameter.grad = part.view(piece.parameter.shape) if has else None

    def _clip(self, clip_norm: float | None) -> float:
        counts = self._whole.counts
        there = [
            (piece.parameter.grad, counts(piece.place.parameter))
            for piece in self.parameters.pieces
            if piece.parameter.grad is not None
        ]
        norm = self._whole.norm_of_pieces([squares_of(g) for g, counted in there if counted])
        clip_gradients([g for g, _ in there], norm, clip_norm)
        return norm

    def _publish(self) -> None:
        if self.parameters.share:
            self.comm.barrier()
            return
        for flat, start, counts in zip(self.parameters.flats, self._starts, self._counts):
            mine = flat[start : start + counts[self.comm.rank]]
            self.comm.all_gather(mine, out=flat, counts=counts)


def _copy_gradient(place: Place, view: torch.Tensor) -> None:
    grad = place.parameter.grad
    if grad is None:
        view.zero_()
    elif grad.layout is not torch.strided:
        raise UnsupportedError(
            f"the gradient of {place.name!r} is {grad.layout}: build its layer with sparse=False"
        )
    else:
        view.copy_(grad.detach())
