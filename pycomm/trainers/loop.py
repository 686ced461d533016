"""The loop of `fit`: epochs, steps, batches; the same for every trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from pycomm.errors import ArgumentError, RankFailedError, StateLostError
from pycomm.parallel.replicate import on_every_rank
from pycomm.trainers.batches import Plan
from pycomm.trainers.loading import Loader
from pycomm.trainers.report import Log
from pycomm.trainers.saving import Saving
from pycomm.trainers.stopping import Stop

if TYPE_CHECKING:
    from pycomm.trainers.base import Trainer


def run(
    trainer: Trainer, loader: Loader, plan: Plan, saving: Saving, open_log: Callable[[], Log]
) -> bool:
    """Train as planned from `trainer.progress` on, and save when it is time.

    If ranks die and the trainer can go on without them, the step under way is made again.

    Returns:
        Whether training ended early because a rank was asked to stop; never if nothing is saved.

    Raises:
        StateLostError: those that died alone had a part of the state; raised on all survivors.
    """
    while True:
        try:
            with on_every_rank(trainer.comm, open_log, "opening the log") as log:
                return _epochs(trainer, loader, plan, saving, log)
        except RankFailedError as error:
            _survive(trainer, error, saving)


def _survive(trainer: Trainer, error: RankFailedError, saving: Saving) -> None:
    try:
        trainer.survive(error)
    except StateLostError as lost:
        raise StateLostError(f"{lost}: {saving.advice}", lost.ranks) from None


def _epochs(trainer: Trainer, loader: Loader, plan: Plan, saving: Saving, log: Log) -> bool:
    now, stop = trainer.progress, Stop(trainer.comm)
    with stop.on_signals(saving.on):
        while not plan.done(now.epoch, now.step):
            now.order = plan.order
            for _ in _steps(trainer, loader, plan, log):
                if saving.on and stop.agreed():
                    saving.save(trainer)
                    return True
                if saving.due(now.step):
                    saving.save(trainer)
                if plan.done(now.epoch, now.step):
                    break
            if now.batch >= plan.batches:
                now.epoch, now.batch = now.epoch + 1, 0
            if saving.on and not saving.due(now.step):
                saving.save(trainer)
    return False


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


def _steps(trainer: Trainer, loader: Loader, plan: Plan, log: Log) -> Iterator[None]:
    """Make the steps that the epoch has left, one for each group of global batches."""
    now = trainer.progress
    groups = list(plan.groups(now.epoch, now.batch))
    loaded = loader.load(map(trainer.wanted, chain.from_iterable(groups)))
    for group in groups:
        step = now.step
        try:
            with trainer.meter:
                loss = _update(trainer, islice(loaded, len(group)), len(group))
        finally:
            now.batch += len(group) * (now.step - step)
        log.step(now.step, now.epoch, loss, sum(map(len, group)))
        yield


def _update(trainer: Trainer, loaded: Iterator[tuple[Any, Any]], group: int) -> float:
    """Make one update from a group of global batches; return its mean loss."""
    losses = [trainer.add(*batch, group) for batch in loaded]
    loss = sum(part.total for part in losses) / sum(part.weight for part in losses)
    trainer.update(loss)
    return loss
