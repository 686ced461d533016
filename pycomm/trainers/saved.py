"""Saved: what is written into checkpoints, and read from them; the same for every trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pycomm.errors import ArgumentError, UnsupportedError
from pycomm.parallel.replicate import on_every_rank
from pycomm.parallel.sharded_update import Update
from pycomm.parallel.whole_update import WholeUpdate
from pycomm.trainers.checkpoint import Checkpoint, save
from pycomm.trainers.named_state import random_state, restore_random
from pycomm.trainers.progress import Progress
from pycomm.trainers.saving import Saving

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class Saved(ABC):
    """A trainer's state on disk; see Trainer for the attributes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer | None
    comm: Communicator
    device: torch.device
    accumulate: int
    progress: Progress
    _pending: int
    _way: Update

    @abstractmethod
    def _part(self) -> dict[str, Any] | None:
        """Return what this rank writes into a checkpoint, see `checkpoint.save`."""

    @abstractmethod
    def _restore(self, saved: dict[str, Any]) -> None:
        """Give the optimizer its saved state, by full names and perhaps of more parameters."""

    def _mine(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return this rank's part of whole tensors with the names that it has."""
        return state

    def _leftovers(self) -> Mapping[str, Any] | None:
        """Return what compression has left for later on this rank, by full name."""
        return self._way.reducer.leftovers() if isinstance(self._way, WholeUpdate) else None

    def _restore_leftovers(self, saved: list[dict[str, Any]]) -> None:
        """Take what was left on each rank when it was saved; nothing, without compression."""
        if isinstance(self._way, WholeUpdate):
            self._way.reducer.restore(saved)

    def _unsavable(self) -> str | None:
        """Return why what compression leaves cannot be in a checkpoint; None if it can."""
        return None

    def check_leftovers(self) -> None:
        """Return if what compression leaves can be in a checkpoint.

        Raises:
            UnsupportedError: on every rank, if it cannot.
        """
        if (why := self._unsavable()) is not None:
            raise UnsupportedError(f"rank {self.comm.rank}: {why}")

    def _kind(self) -> str | None:
        """Return the kind of optimizer; None on a rank that has none."""
        return None if self.optimizer is None else type(self.optimizer).__name__

    @abstractmethod
    def _expected(self) -> dict[str, tuple[str, list[int]]]:
        """Return (dtype, shape) of every tensor of the whole model by full name."""

    @abstractmethod
    def _share_buffers(self) -> None:
        """Make buffers equal where ranks hold copies of them."""

    def save(self, directory: str | Path, keep: int = 1) -> None:
        """Write model, optimizer, progress and random generators into a folder, atomically.

        With compression each rank also writes what it has not sent yet.

        Every rank must call this; it returns when everything is on disk. The last `keep`
        checkpoints there stay, this one included.

        Raises:
            ArgumentError: gradients are pending inside a group of `accumulate` batches.
            CommError: a rank could not write; raised on all, what was there before is kept.
            UnsupportedError: compression leaves what cannot be saved, see `check_leftovers`.
        """
        self.check_leftovers()
        on_every_rank(self.comm, lambda: Saving(directory, None, keep))
        if self._pending:
            raise ArgumentError(self._pending_text("save"))
        self._share_buffers()
        part, random = self._part(), random_state(self.device)
        now = asdict(self.progress)
        save(directory, self.comm, part, random, now, keep, self._leftovers(), self._kind())

    def load(self, directory: str | Path) -> None:
        """Restore what `save` wrote, on any number of ranks, any device and from any trainer.

        Every rank must call this and see the folder. Random generators are restored on the ranks
        that existed when it was saved, and on the kind of device.

        Raises:
            ArgumentError: there is no checkpoint, it is damaged, or of another model; names the
                first parameter that does not fit. Raised on every rank; nothing has changed.
            UnsupportedError: it has leftovers of compression that this trainer cannot take.
        """
        saved = self._read(directory)  # nobody changes before everybody has read
        if saved["leftovers"]:
            self.check_leftovers()
        state, random = saved["part"], saved["random"]
        state = self._mine(state)
        self.module.load_state_dict(state["model"])
        self._restore(state["optimizer"])
        self._restore_leftovers(saved["leftovers"])
        self.progress, self._pending = saved["progress"], 0
        if random is not None:
            restore_random(random, self.device)

    def _read(self, directory: str | Path) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            saved = Checkpoint(directory)
            with saved.reading():
                saved.check(self._expected())
                saved.check_optimizer(self._kind())
                return {
                    "part": saved.read(self.module.state_dict()),
                    "random": saved.random(self.comm.rank),
                    "progress": Progress(**saved.progress),
                    "leftovers": saved.leftovers(),
                }

        return on_every_rank(self.comm, read, f"reading the checkpoint in {str(directory)!r}")

    def _pending_text(self, operation: str) -> str:
        return (
            f"{operation} after {self._pending} of accumulate={self.accumulate} batches would lose "
            f"their gradients: call it after the last"
        )
