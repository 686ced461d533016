"""The loop of `fit`: epochs, steps, batches; the same for every trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycomm.errors import ArgumentError
from pycomm.trainers.batches import Plan
from pycomm.trainers.report import Log

if TYPE_CHECKING:
    from pycomm.trainers.base import Trainer


def run(
    trainer: Trainer, dataset: Any, plan: Plan, checkpoint: str | Path | None, log: Log
) -> None:
    """Train as planned from `trainer.progress` on; save at the end of each epoch and at the end."""
    now = trainer.progress
    while not plan.done(now.epoch, now.step):
        now.order = plan.order
        for group in plan.groups(now.epoch, now.batch):
            _step(trainer, dataset, group, log)
            if plan.done(now.epoch, now.step):
                break
        if now.batch >= plan.batches:
            now.epoch, now.batch = now.epoch + 1, 0
        if checkpoint is not None:
            trainer.save(checkpoint)


def check_position(trainer: Trainer, plan: Plan) -> None:
    """Return if training can go on where it stopped.

    Raises:
        ArgumentError: it stopped inside an epoch whose order of samples was another one.
    """
    now = trainer.progress
    if now.batch and now.order != plan.order:
        raise ArgumentError(
            f"training stopped at batch {now.batch} of epoch {now.epoch} with {now.order}, and "
            f"cannot go on there with {plan.order}: pass the same dataset, batch_size and seed, or "
            f"set trainer.progress.batch = 0 to start that epoch again"
        )


def _step(trainer: Trainer, dataset: Any, group: list[np.ndarray], log: Log) -> None:
    """Make one update from a group of global batches."""
    with trainer.meter:
        losses = [trainer.add(*trainer.fetch(dataset, batch), len(group)) for batch in group]
        loss = sum(part.total for part in losses) / sum(part.weight for part in losses)
        trainer.update(loss)
    now = trainer.progress
    now.batch += len(group)
    log.step(now.step, now.epoch, loss, sum(map(len, group)))
