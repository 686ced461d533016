"""pycomm's model parallelism, with every schedule that it has."""

from __future__ import annotations

from functools import partial
from typing import Any

import pycomm
from bench.training.jobs import PipelineJob
from bench.training.variants.base import Bubble, Training, variant
from pycomm.parallel.schedules.registry import SCHEDULES, ScheduleKind
from pycomm.parallel.schedules.timeline import idle_share


def _bubble(kind: ScheduleKind) -> Bubble:
    """Return what a schedule leaves idle if forward and the halves of backward take as long."""
    return lambda ranks, microbatches: idle_share(
        kind.build(ranks, microbatches, kind.stages_per_rank)
    )


def _trained(job: PipelineJob, schedule: str, **balance: Any) -> Training:
    """Return the step of a trainer that cuts the model as `balance` says."""
    trainer = pycomm.ModelParallelTrainer(
        job.module(),
        job.optimizer,
        job.loss,
        job.ranks.comm,
        microbatches=job.microbatches,
        schedule=schedule,
        **balance,
    )
    return Training(partial(trainer.step, *job.whole), trainer.module)


def _register(kind: ScheduleKind) -> None:
    def train(job: PipelineJob) -> Training:
        return _trained(job, kind.name, balance="params")

    train.__doc__ = f"ModelParallelTrainer(schedule={kind.name!r}), stages of like many parameters."
    variant(f"pycomm-{kind.name}", parallel="model", bubble=_bubble(kind))(train)


for _kind in SCHEDULES.values():
    _register(_kind)


@variant("pycomm-1f1b-time", parallel="model", bubble=_bubble(SCHEDULES["1f1b"]))
def balanced_by_time(job: PipelineJob) -> Training:
    """The same with schedule='1f1b', stages of like much time, as measured on a microbatch."""
    return _trained(job, "1f1b", balance="time", sample=job.pieces[0][0])
