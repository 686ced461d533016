"""pycomm's data parallelism."""

from __future__ import annotations

from functools import partial

import pycomm
from bench.training.jobs import Job
from bench.training.variants.base import Training, loop_step, variant


@variant("pycomm-trainer")
def trainer(job: Job) -> Training:
    """DataParallelTrainer.step: weighs shares, returns the global loss."""
    module = job.module()
    made = pycomm.DataParallelTrainer(module, job.optimizer, job.loss, job.ranks.comm)
    return Training(partial(made.step, *job.share), module)


@variant("pycomm-wrapper")
def wrapper(job: Job) -> Training:
    """pycomm.DataParallel in a plain loop."""
    module = job.module()
    return Training(loop_step(pycomm.DataParallel(module, job.ranks.comm), module, job), module)
