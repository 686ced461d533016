"""The fused update: node-mates' gradients are summed, used and published in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pycomm import _native, arrays
from pycomm.kernels import update
from pycomm.parallel.exchange import GradientExchange
from pycomm.parallel.flat_parameters import FlatParameters, OwnPiece
from pycomm.parallel.gradient_norm import clip_factor, norm_of
from pycomm.parallel.rules import settings

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class FusedUpdate:
    """SGD, Adam or AdamW on the pieces that this rank owns, by csrc/cpu/update.

    ::

        every rank copies what others own of its gradients    (n − 1)/n read, (n − 1)/n written
        all ranks say which gradients there are, and so that they are all there
        for each block of 4 KiB of its own pieces a rank      each 1/n:
            adds the n gradients in rank order                n read
            updates state and parameter                       1 + states read and written
            writes the parameter to the other copies          n − 1 written, or none if shared
        all ranks wait for each other

    Clipping needs the norm before the update: the sum is written to the rank's own buffer, with
    partial sums of squares of blocks of 4096 elements, so that the norm depends on nothing else;
    then the update reads it there.

    Args:
        rule: what kernels.update does.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: int,
        parameters: FlatParameters,
        groups: Sequence[int | None],
        comm: Communicator,
    ):
        self.optimizer, self.comm, self.parameters = optimizer, comm, parameters
        self.exchange = GradientExchange(parameters, comm)
        self._tables = [
            _Table(optimizer, rule, parameters, groups, self.exchange, number)
            for number in range(len(parameters.layouts))
        ]

    def expect(self, last: bool) -> None:
        """Say whether gradients are final once the next backward pass has added to them."""
        self.exchange.last = last

    def step(self, scale: float, clip_norm: float | None) -> float | None:
        """Update with the sum of all ranks' gradients times `scale`; return the norm if it clips.

        The norm is that of the scaled gradient. Every rank must call this.
        """
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
        if clip_norm is not None:
            squares = [table.reduce(scale) for table in self._tables]
            norm = norm_of(self.comm, squares)
            scale = clip_factor(norm, clip_norm)
        for table in self._tables:
            table.update(scale)
        self.comm.barrier()
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
        self.table = update.table(
            [
                update.Piece(
                    _addresses(self.gradients, row.piece),
                    _addresses(copies, row.piece),
                    [],
                    0,
                    row.count,
                    update.tail(
                        row.piece.place.count, layout.dtype.itemsize, row.piece.begin, row.piece.end
                    ),
                )
                for row in self.rows
            ],
            len(self.gradients),
            len(copies),
        )
        self._states = len(self.gradients) + len(copies)
        self._item = layout.dtype.itemsize
        self._touched = (2 * len(self.gradients) + len(copies)) * mine.nbytes
        self.blocks = [-(-row.count // update.NORM_BLOCK) for row in self.rows]
        self.squares = np.empty(sum(self.blocks), np.float64)
        self._active: list[int] = []

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

    def reduce(self, scale: float) -> np.ndarray:
        """Write the scaled sums of gradients to this rank's buffer; return squares of blocks."""
        self._reduced = True
        table, rows = self.table[self._active], [self.rows[i] for i in self._active]
        flat = self.gradients[self.rank]
        table[:, self._states] = [flat.data_ptr() + row.piece.at * self._item for row in rows]
        ends = np.cumsum([0] + [self.blocks[i] for i in self._active])
        table[:, self._states + 1] = _native.address(self.squares) + 8 * ends[:-1]
        _native.reduce_gradients(table, self.code, len(self.gradients), scale)
        return self.squares[: ends[-1]]

    def update(self, scale: float) -> None:
        """Update and publish the parameters."""
        active = [i for i in self._active if self.rows[i].group is not None]
        if not active:
            return
        table = self.table[active]
        kinds: dict[tuple[int, float], int] = {}
        for line, i in zip(table, active):
            row = self.rows[i]
            if row.group is not None:
                self._prepare(line, row, row.group, kinds)
        gradients = len(self.gradients)
        if self._reduced:
            flat = self.gradients[self.rank].data_ptr()
            table = table[:, gradients - 1 :].copy()
            table[:, 0] = [flat + self.rows[i].piece.at * self._item for i in active]
            gradients = 1
        groups = self.optimizer.param_groups
        lines = [settings(type(self.optimizer), groups[group], step) for group, step in kinds]
        rows = np.array(lines, np.float64)
        _native.update(self.rule, table, rows, self.code, gradients, scale, self._touched)

    def _prepare(
        self, line: np.ndarray, row: _Row, group: int, kinds: dict[tuple[int, float], int]
    ) -> None:
        """Fill in addresses of a piece's state, made if need be, and the number of its settings."""
        state = self.optimizer.state[row.piece.parameter]
        step = row.advance(self.rule, self.optimizer.param_groups[group], state)
        for k, name in enumerate(update.STATES[self.rule]):
            value = state.get(name)
            line[self._states + k] = 0 if value is None else value.data_ptr()
        line[self._states + 2] = kinds.setdefault((group, step), len(kinds))


class _Row:
    """A piece, the number of its group, and its state by torch's names."""

    def __init__(self, piece: OwnPiece, group: int | None):
        self.piece, self.group = piece, group
        self.count = piece.end - piece.begin

    def advance(self, rule: int, group: dict[str, Any], state: dict[str, Any]) -> float:
        """Return the number of the step that comes; SGD only tells the first from others."""
        if rule == update.SGD:
            if group["momentum"] == 0:
                return 2
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(self.piece.parameter.detach())
                return 1
            return 2
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(self.piece.parameter.detach())
            state["exp_avg_sq"] = torch.zeros_like(self.piece.parameter.detach())
        state["step"] += 1
        return float(state["step"])


def _mine_first(comm: Communicator, flat: torch.Tensor) -> list[torch.Tensor]:
    views = comm.views(flat)
    return [flat, *(view for rank, view in enumerate(views) if rank != comm.rank)]


def _addresses(flats: Sequence[torch.Tensor], piece: OwnPiece) -> list[int]:
    return [flat.data_ptr() + piece.at * flat.itemsize for flat in flats]
