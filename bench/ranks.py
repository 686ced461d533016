"""The ranks of a benchmark, held together over an MPI communicator that nothing measured uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import pycomm


class Ranks:
    """Brings ranks together before a sample, and their numbers after it.

    Attributes:
        comm: pycomm's Communicator of all ranks.
        mpi: the module mpi4py.MPI, initialised by pycomm.
        hosts: how many machines the ranks are on.
    """

    def __init__(self) -> None:
        self.comm = pycomm.init()
        from mpi4py import MPI

        self.mpi = MPI
        self._world = MPI.COMM_WORLD.Dup()
        self.rank: int = self._world.rank
        self.size: int = self._world.size
        self.barrier = self._world.Barrier
        self.hosts = len(set(self.gathered(MPI.Get_processor_name())))

    def gathered(self, value: Any) -> list[Any]:
        """Return every rank's small object, on every rank."""
        return self._world.allgather(value)

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's small object."""
        return self._world.bcast(value)

    def largest(self, value: float) -> float:
        """Return the largest of the ranks' numbers."""
        return self._world.allreduce(value, self.mpi.MAX)

    def stacked(self, array: np.ndarray) -> np.ndarray:
        """Return (ranks, *array.shape), on every rank."""
        rows = np.empty((self.size, *array.shape), array.dtype)
        self._world.Allgather(np.ascontiguousarray(array), rows)
        return rows

    def rest(self) -> None:
        """Return when all ranks have come; who is early leaves its core to the others."""
        request = self._world.Ibarrier()
        while not request.Test():
            time.sleep(0.01)
