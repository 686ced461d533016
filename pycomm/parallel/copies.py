"""Copies: what a rank owns is also where its neighbours find it when it has died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pycomm.parallel.generation import Generation, Row, room, row_of, size_of, tensors_of
from pycomm.parallel.owners import Owners
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
        the survivors put together what all ranks owned after s, and divide it among them
        every survivor copies what it owns now to generation s + 1, which the ones before outlive
        ⋮
        somebody dies before s + 1 counts for any survivor: s is the newest again

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
        self._generations = Generation(), Generation()
        self._newest = -1
        self.move(state, comm)

    def move(self, state: ShardedState, comm: Communicator) -> None:
        """Copy what ranks own from now on, and copy it now; every rank of `comm` must call this."""
        self._state, self._comm = state, comm
        on_a_host = max(comm.all_gather_object(comm.local.size))
        pieces = [state.pieces_of(rank) for rank in range(comm.size)]
        distance = on_a_host % comm.size or 1
        self._owners = Owners(comm.rank, pieces, comm.shares_memory, distance)
        self.take()

    @property
    def nbytes(self) -> int:
        """The memory that copies take on this rank."""
        return sum(
            flat.nbytes
            for generation in self._generations
            for rank, flat in generation.flats.items()
            if rank == generation.owners.rank or not generation.owners.mapped
        )

    def take(self) -> None:
        """Copy what is there now; every rank must call this."""
        optimizer, pieces = self._state.optimizer, self._state.parameters.pieces
        states = [optimizer.state.get(piece.parameter, {}) for piece in pieces]
        named = [tensors_of(piece, state) for piece, state in zip(pieces, states)]
        rows = [row_of(tensors, state) for tensors, state in zip(named, states)]
        generation = self._generations[(self._newest + 1) % 2]
        changed = not generation.fits(self._owners, rows)
        if self._comm.all_reduce(np.array([changed], np.uint8), op="max")[0]:
            self._open(generation, rows)
        generation.write([tensor for tensors in named for _, tensor in tensors])
        if not self._owners.mapped:
            self._send(generation)
        self._comm.barrier()
        self._newest += 1

    def recover(self, comm: Communicator, far: tuple[int, ...], said: Any) -> tuple[Whole, Any]:
        """Put together what all ranks owned after the newest step that counts for any survivor.

        Nothing is changed, so that the survivors of another death can do it again.

        Args:
            comm: the survivors, in their order; each must call this.
            far: how far this one has come, where the newest step of several is the same.
            said: what goes with that; small.

        Returns:
            The parameters and the optimizer's state; and what the survivor said that is farthest.

        Raises:
            StateLostError: a rank and the one that had its copy are dead.
        """
        numbers = [generation.owners.rank for generation in self._generations]
        rows = comm.all_gather_object((self._newest, far, said, numbers))
        newest, _, farthest, _ = max(rows, key=lambda row: row[:2])
        alive = [of_both[newest % 2] for _, _, _, of_both in rows]
        whole = self._generations[newest % 2].put_together(comm, alive)
        comm.barrier()  # nobody uses the memory of copies again before all have read them
        self._newest = newest
        return whole, farthest

    def _open(self, generation: Generation, rows: list[Row]) -> None:
        """Agree on what ranks own, and find a place for it; collective."""
        comm, everyones = self._comm, self._comm.all_gather_object(rows)
        mine = comm.empty(size_of(rows), torch.uint8)
        if self._owners.mapped:
            flats = dict(enumerate(comm.views(mine)))
        else:
            flats = {comm.rank: mine, self._owners.source: room(everyones[self._owners.source])}
        generation.open(self._owners, everyones, flats)

    def _send(self, generation: Generation) -> None:
        source = self._owners.source
        receiving = self._comm.irecv(source, out=generation.flats[source])
        self._comm.send(generation.flats[self._comm.rank], self._owners.keeper)
        receiving.wait()
