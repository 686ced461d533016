"""Reported: what a trainer tells of its ranks; the same for every trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pycomm.trainers.report import Meter, print_rows, state_bytes

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Reported:
    """A trainer's report; see Trainer for the attributes."""

    optimizer: torch.optim.Optimizer | None
    comm: Communicator
    meter: Meter

    def report(self) -> list[dict[str, Any]]:
        """Return a row for each rank; every rank must call this.

        Returns:
            rank, samples_per_s, computing_s, communicating_s, idle_s, bytes_sent: of all `step`
            and `fit` calls so far; state_bytes: of the optimizer's state on the rank; copy_bytes:
            of copies for when a rank dies, if there are any; on a GPU gpu_bytes, see `gpu_memory`.
        """
        return self.comm.all_gather_object(self._row())

    def print_report(self) -> None:
        """Print `report` as a table on rank 0; every rank must call this."""
        rows = self.report()
        if self.comm.rank == 0:
            print_rows(rows, remarks=self._remarks(rows))

    def _row(self) -> dict[str, Any]:
        """Return this rank's row of the report."""
        return {**self.meter.row(), **self._memory()}

    def _remarks(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return what is to be said below the rows."""
        return []

    def _memory(self) -> dict[str, int]:
        return {"state_bytes": state_bytes(self.optimizer)}
