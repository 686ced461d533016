"""pycomm's model parallelism, with every schedule that it has."""

from __future__ import annotations

from functools import partial

import pycomm
from bench.training.cut import costs
from bench.training.jobs import PipelineJob
from bench.training.variants.base import Training, variant
from bench.training.variants.other_pipelines import fill_and_drain
from pycomm.parallel.schedule import SCHEDULES


def _train(job: PipelineJob, schedule: str) -> Training:
    trainer = pycomm.ModelParallelTrainer(
        job.module(),
        job.optimizer,
        job.loss,
        job.ranks.comm,
        microbatches=job.microbatches,
        schedule=schedule,
        balance=costs(job),
    )
    return Training(partial(trainer.step, *job.whole), trainer.module)


def _register(schedule: str) -> None:
    def train(job: PipelineJob) -> Training:
        return _train(job, schedule)

    train.__doc__ = f"ModelParallelTrainer(schedule={schedule!r}), stages of like many parameters."
    variant(f"pycomm-{schedule}", parallel="model", bubble=fill_and_drain)(train)


for _name in SCHEDULES:
    _register(_name)
