"""Saving: where and when `fit` writes checkpoints."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pycomm.errors import ArgumentError
from pycomm.trainers.batches import check_whole
from pycomm.trainers.checkpoint import check_path

if TYPE_CHECKING:
    from pycomm.trainers.saved import Saved


@dataclass(frozen=True)
class Saving:
    """Where and when `fit` saves.

    Args:
        directory: a folder; None does not save.
        every: also after every so many steps.
        keep: how many of the last saves stay.

    Raises:
        ArgumentError: a number is not positive, or there is one without a directory.
    """

    directory: str | Path | None
    every: int | None
    keep: int

    def __post_init__(self) -> None:
        check_whole(
            keep=self.keep, **({} if self.every is None else {"checkpoint_every": self.every})
        )
        check_path("checkpoint", self.directory)
        if not self.on and self.every is not None:
            raise ArgumentError(f"checkpoint_every={self.every} needs checkpoint=, a folder")

    @property
    def on(self) -> bool:
        """Whether anything is saved."""
        return self.directory is not None

    @property
    def advice(self) -> str:
        """What to do when the state of training is lost."""
        if self.on:
            return (
                f"start again with checkpoint={str(self.directory)!r}, to go on from the last one"
            )
        return "start again, with checkpoint=, a folder, to have something to go on from"

    def due(self, step: int) -> bool:
        """Say whether it is time to save after `step` steps."""
        return self.every is not None and step % self.every == 0

    def save(self, trainer: Saved) -> None:
        """Save the trainer's state."""
        assert self.directory is not None
        trainer.save(self.directory, self.keep)

    def check_writable(self) -> None:
        """Make the folder of checkpoints if need be; long before the first one is written.

        Raises:
            ArgumentError: it cannot be written to.
        """
        if self.directory is None:
            return
        try:
            Path(self.directory).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.directory).close()
        except OSError as error:
            raise ArgumentError(
                f"checkpoint={str(self.directory)!r} cannot be written: {error}"
            ) from error
