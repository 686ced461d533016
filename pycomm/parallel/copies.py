"""Copies: what a rank owns is also where its neighbours find it when it has died."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pycomm.errors import RankFailedError
from pycomm.parallel.generation import (
    PARAMETER,
    Generation,
    Row,
    moved,
    read,
    row_of,
    size_of,
    tensors_of,
)
from pycomm.parallel.sharded_state import ShardedState, Whole

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Copies:
    """Two generations of what every rank owns, parameters and optimizer state, in memory.

    ::

        the update of step s is over
        every rank copies what it owns to generation s      over that of step s − 2
        and, if they share no memory, sends it to a neighbour on the next host
        all ranks wait for each other: s counts
        ⋮
        somebody dies; s is the newest that counts for any survivor
        the survivors put together what all ranks owned after s

    A generation that counts for one is complete on all, and so is the one before it, until all of
    the next is. Ranks of one host map each other's buffers, which outlive their process: any number
    of them may die at once. Otherwise rank r's copy is at rank r + k, with k ranks on a host, as in
    Wang et al., GEMINI (SOSP 2023): a host may die, but not these two at once.

    A rank keeps two of its own generations, and two of another rank's if these are sent.

    Args:
        state: over the pieces of this rank.
        comm: the ranks, which can shrink.
    """

    def __init__(self, state: ShardedState, comm: Communicator):
        self._state, self._comm = state, comm
        self._generations = Generation(), Generation()
        self._newest = -1
        on_a_host = max(comm.all_gather_object(comm.local.size))
        self._distance = on_a_host % comm.size or 1
        self.take()

    @property
    def nbytes(self) -> int:
        """The memory that copies take on this rank."""
        mapped = self._comm.shares_memory
        return sum(
            flat.nbytes
            for generation in self._generations
            for rank, flat in generation.flats.items()
            if rank == self._comm.rank or not mapped
        )

    def take(self) -> None:
        """Copy what is there now; every rank must call this."""
        optimizer, pieces = self._state.optimizer, self._state.parameters.pieces
        states = [optimizer.state.get(piece.parameter, {}) for piece in pieces]
        named = [tensors_of(piece, state) for piece, state in zip(pieces, states)]
        rows = [row_of(tensors, state) for tensors, state in zip(named, states)]
        generation = self._generations[(self._newest + 1) % 2]
        changed = not generation.rows or rows != generation.rows[self._comm.rank]
        if self._comm.all_reduce(np.array([changed], np.uint8), op="max")[0]:
            self._open(generation, rows)
        generation.write([tensor for tensors in named for _, tensor in tensors])
        if not self._comm.shares_memory:
            self._send(generation)
        self._comm.barrier()
        self._newest += 1

    def recover(self, comm: Communicator) -> Whole:
        """Put together what all ranks owned after the newest step that counts for any survivor.

        Args:
            comm: the survivors, in their order; each must call this.

        Returns:
            The parameters, and the optimizer's state.

        Raises:
            RankFailedError: a rank and the one that had its copy are dead.
        """
        survivors = comm.all_gather_object((self._comm.rank, self._newest))
        alive, newest = [rank for rank, _ in survivors], max(step for _, step in survivors)
        generation = self._generations[newest % 2]
        holders = [alive.index(self._holder(rank, alive)) for rank in range(self._comm.size)]
        whole = Whole(p for r in range(self._comm.size) for p in self._state.pieces_of(r))
        for rank, rows in enumerate(generation.rows):
            flat = generation.flats[rank] if rank in generation.flats else _empty(rows)
            if not self._comm.shares_memory:
                comm.broadcast(flat, holders[rank])
            for row, found in zip(rows, read(rows, flat)):
                tensors = moved(row, found)
                whole.add(tensors.pop(PARAMETER), tensors, row.plain)
        comm.barrier()  # nobody uses the memory of copies again before all have read them
        return whole

    def _open(self, generation: Generation, rows: list[Row]) -> None:
        """Agree on what ranks own, and find a place for it; collective."""
        comm, everyones = self._comm, self._comm.all_gather_object(rows)
        mine = comm.empty(size_of(rows), torch.uint8)
        if comm.shares_memory:
            flats = dict(enumerate(comm.views(mine)))
        else:
            source = (comm.rank - self._distance) % comm.size
            flats = {comm.rank: mine, source: _empty(everyones[source])}
        generation.open(everyones, flats, comm.rank)

    def _send(self, generation: Generation) -> None:
        comm = self._comm
        source = (comm.rank - self._distance) % comm.size
        receiving = comm.irecv(source, out=generation.flats[source])
        comm.send(generation.flats[comm.rank], (comm.rank + self._distance) % comm.size)
        receiving.wait()

    def _holder(self, rank: int, alive: list[int]) -> int:
        """Return a survivor who has what a rank owned."""
        if self._comm.shares_memory:
            return alive[0]
        keeper = (rank + self._distance) % self._comm.size
        holder = next((r for r in (rank, keeper) if r in alive), None)
        if holder is None:
            raise RankFailedError(
                f"ranks {rank} and {keeper} died at once (this was rank {self._comm.rank}): what "
                f"rank {rank} owned of parameters and optimizer state is lost, as rank {keeper} "
                f"had its copy: start again with checkpoint=, from the last one",
                (rank, keeper),
            )
        return holder


def _empty(rows: list[Row]) -> torch.Tensor:
    return torch.empty(size_of(rows), dtype=torch.uint8)
