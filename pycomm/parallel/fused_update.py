"""The fused update: node-mates' gradients are summed, used and published in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pycomm import _native, arrays
from pycomm.kernels import update
from pycomm.parallel.exchange import GradientExchange
from pycomm.parallel.flat_parameters import FlatParameters, OwnPiece
from pycomm.parallel.gradient_norm import clip_factor
from pycomm.parallel.rules import settings
from pycomm.parallel.whole_gradient import WholeGradient

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


Accepts = Callable[[float], bool] | None


class FusedUpdate:
    """SGD, Adam or AdamW on the pieces that this rank owns, by csrc/cpu/update.

    ::

        every rank copies what others own of its gradients    (n − 1)/n read, (n − 1)/n written
        all ranks say which gradients there are, and so that they are all there
        for each block of 2 KiB of its own pieces a rank      each 1/n:
            adds the n gradients in rank order                n read
            updates state and parameter                       1 + states read and written
            writes the parameter to the other copies          n − 1 written, or none if shared
        all ranks wait for each other

    Clipping needs the norm before the update: the sum is written to the rank's own buffer, with
    partial sums of squares of blocks of 4096 elements, so that the norm depends on nothing else;
    then the update reads it there.

    Args:
        rule: what kernels.update does.
        whole: the gradient that this is a part of.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: int,
        parameters: FlatParameters,
        groups: Sequence[int | None],
        comm: Communicator,
        whole: WholeGradient,
    ):
        self.optimizer, self.comm, self.parameters = optimizer, comm, parameters
        self._whole = whole
        self.exchange = GradientExchange(parameters, comm)
        self._tables = [
            _Table(optimizer, rule, parameters, groups, self.exchange, number)
            for number in range(len(parameters.layouts))
        ]
        written = 0 if parameters.share else sum(table.nbytes for table in self._tables)
        self._sent_bytes = self.exchange.foreign_bytes + (comm.size - 1) * written

    def expect(self, last: bool) -> None:
        """Say whether gradients are final once the next backward pass has added to them."""
        self.exchange.last = last

    def step(self, scale: float, clip_norm: float | None, accepts: Accepts) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; see Update.step."""
        self.parameters.check_unmoved()
        used = np.array(self.exchange.collect(), np.uint8)
        self.comm.all_reduce(used, op="max")  # now all gradients are there
        somewhere = {
            id(slot.place.parameter)
            for slot, flag in zip(self.exchange.slots, used.tolist())
            if flag
        }
        own = self.exchange.own_addresses()
        for table in self._tables:
            table.begin(own, somewhere)
        norm = None
        if clip_norm is not None or accepts is not None:
            norm = self._whole.norm_of_pieces(
                [table.reduce(scale, self._whole.counts) for table in self._tables]
            )
            scale = 1.0 if clip_norm is None else clip_factor(norm, clip_norm)
        if norm is None or accepts is None or accepts(norm):
            for table in self._tables:
                table.update(scale)
        self.comm.barrier()
        self.comm.count_sent(self._sent_bytes)
        for slot in self.exchange.slots:
            slot.forget()
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules look at it
        return norm


class _Table:
    """The own pieces of one layout, as rows of addresses."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: int,
        parameters: FlatParameters,
        groups: Sequence[int | None],
        exchange: GradientExchange,
        number: int,
    ):
        self.optimizer, self.rule, self.rank = optimizer, rule, exchange.comm.rank
        layout = parameters.layouts[number]
        self.code = arrays.resolve_dtype(layout.dtype).code
        self.gradients = exchange.flats[number]
        mine = parameters.flats[number]
        copies = [mine] if parameters.share else _mine_first(exchange.comm, mine)
        self._keep = copies
        self.rows = [
            _Row(piece, group)
            for piece, group in zip(parameters.pieces, groups)
            if piece.layout == number and piece.end > piece.begin
        ]
        pieces = [row.addressed(self.gradients, copies) for row in self.rows]
        self.table = update.table(pieces, len(self.gradients), len(copies))
        self._states, self._item = len(self.gradients) + len(copies), layout.dtype.itemsize
        self.nbytes = sum(row.count for row in self.rows) * self._item
        self._touched = (2 * len(self.gradients) + len(copies)) * mine.nbytes
        self.blocks = [-(-row.count // update.NORM_BLOCK) for row in self.rows]
        self.squares = np.empty(sum(self.blocks), np.float64)
        self._active: list[int] = []
        self._first = [False] * len(self.rows)
        self.steps = torch.zeros(len(self.rows))
        self._step_of = self.steps.unbind()  # what torch keeps for each parameter

    def begin(self, own: dict[int, int], somewhere: set[int]) -> None:
        """Take in where this rank's gradients lie, and which parameters have one anywhere."""
        self._active = [
            i for i, row in enumerate(self.rows) if id(row.piece.place.parameter) in somewhere
        ]
        starts = [
            own[id(row.piece.place.parameter)] + row.piece.begin * self._item for row in self.rows
        ]
        self.table[:, self.rank] = starts
        self._reduced = False

    def reduce(self, scale: float, counts: Callable[[nn.Parameter], bool]) -> np.ndarray:
        """Write the scaled sums of gradients to this rank's buffer.

        Returns:
            Sums of squares of the blocks of those parameters that count.
        """
        self._reduced = True
        table, rows = self.table[self._active], [self.rows[i] for i in self._active]
        flat = self.gradients[self.rank]
        table[:, self._states] = [flat.data_ptr() + row.piece.at * self._item for row in rows]
        ends = np.cumsum([0] + [self.blocks[i] for i in self._active])
        table[:, self._states + 1] = _native.address(self.squares) + 8 * ends[:-1]
        _native.reduce_gradients(table, self.code, len(self.gradients), scale)
        counted = np.array([counts(row.piece.place.parameter) for row in rows], bool)
        return self.squares[: ends[-1]][np.repeat(counted, np.diff(ends))]

    def update(self, scale: float) -> None:
        """Update and publish the parameters."""
        active = [i for i in self._active if self.rows[i].group is not None]
        if not active:
            return
        table = self.table[active]
        table[:, self._states : self._states + 3], rows = self._states_and_settings(active)
        gradients = len(self.gradients)
        if self._reduced:
            flat = self.gradients[self.rank].data_ptr()
            table = table[:, gradients - 1 :].copy()
            table[:, 0] = [flat + self.rows[i].piece.at * self._item for i in active]
            gradients = 1
        _native.update(self.rule, table, rows, self.code, gradients, scale, self._touched)

    def _states_and_settings(self, active: list[int]) -> tuple[list[list[int]], np.ndarray]:
        """Return for each piece the addresses of its state and a number, and rows of settings."""
        addresses = [self._state_of(i) for i in active]
        steps = self._advance(active)
        kinds: dict[tuple[int | None, float], int] = {}
        numbers = [
            kinds.setdefault((self.rows[i].group, step), len(kinds))
            for i, step in zip(active, steps)
        ]
        kind, groups = type(self.optimizer), self.optimizer.param_groups
        rows = [settings(kind, groups[group or 0], step) for group, step in kinds]
        return [[*a, n] for a, n in zip(addresses, numbers)], np.array(rows, np.float64)

    def _state_of(self, i: int) -> list[int]:
        """Return the addresses of a piece's state, which is made where there is none."""
        row = self.rows[i]
        group, own = self.optimizer.param_groups[row.group or 0], row.piece.parameter
        if self.rule == update.SGD and group["momentum"] == 0:
            return [0, 0]
        state = self.optimizer.state[own]
        names = update.STATES[self.rule]
        self._first[i] = state.get(names[0]) is None
        for name in names:
            if state.get(name) is None:
                state[name] = torch.zeros_like(own.detach())
        if self.rule == update.ADAM and state.get("step") is not self._step_of[i]:
            self.steps[i] = float(state.get("step", 0.0))
            state["step"] = self._step_of[i]
        return [*(state[name].data_ptr() for name in names), 0][:2]

    def _advance(self, active: list[int]) -> list[float]:
        """Return the number of each piece's step; SGD only tells the first from others."""
        if self.rule == update.SGD:
            return [1.0 if self._first[i] else 2.0 for i in active]
        self.steps[active] += 1
        return self.steps[active].tolist()


class _Row:
    """A piece, and the number of its group."""

    def __init__(self, piece: OwnPiece, group: int | None):
        self.piece, self.group = piece, group
        self.count = piece.end - piece.begin

    def addressed(
        self, gradients: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]
    ) -> update.Piece:
        """Return what the kernel is told of the piece, before there is any state."""
        piece = self.piece
        tail = update.tail(piece.place.count, copies[0].itemsize, piece.begin, piece.end)
        own, others = _addresses(gradients, piece), _addresses(copies, piece)
        return update.Piece(own, others, [], 0, self.count, tail)


def _mine_first(comm: Communicator, flat: torch.Tensor) -> list[torch.Tensor]:
    views = comm.views(flat)
    return [flat, *(view for rank, view in enumerate(views) if rank != comm.rank)]


def _addresses(flats: Sequence[torch.Tensor], piece: OwnPiece) -> list[int]:
    return [flat.data_ptr() + piece.at * flat.itemsize for flat in flats]
