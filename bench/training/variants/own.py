"""pycomm's data parallelism."""

from __future__ import annotations

from functools import partial
from typing import Any

import pycomm
from bench.training.jobs import Job
from bench.training.variants.base import Training, loop_step, variant


@variant("pycomm-trainer")
def trainer(job: Job) -> Training:
    """DataParallelTrainer.step: weighs shares, returns the global loss."""
    return _trainer(job)


@variant("pycomm-wrapper")
def wrapper(job: Job) -> Training:
    """pycomm.DataParallel in a plain loop."""
    return _wrapper(job)


@variant("pycomm-one-bucket")
def one_bucket(job: Job) -> Training:
    """pycomm.DataParallel with a single bucket: nothing is reduced before backward ends."""
    return _wrapper(job, bucket_bytes=1 << 40)


@variant("pycomm-bf16", most_off=0.05)
def compressed(job: Job) -> Training:
    """pycomm.DataParallel with compression="bf16"; weights are off by what that delays."""
    return _wrapper(job, compression="bf16")


@variant("pycomm-shared")
def shared(job: Job) -> Training:
    """DataParallelTrainer(share=True): the ranks also share one copy of the parameters."""
    return _trainer(job, share=True)


@variant("pycomm-whole")
def whole(job: Job) -> Training:
    """DataParallelTrainer(shard=False): reduce in backward, then torch's update on every rank."""
    return _trainer(job, shard=False)


def _trainer(job: Job, **options: Any) -> Training:
    module = job.module()
    parts = module, job.optimizer, job.loss, job.ranks.comm
    return Training(partial(pycomm.DataParallelTrainer(*parts, **options).step, *job.share), module)


def _wrapper(job: Job, **options: Any) -> Training:
    module = job.module()
    model = pycomm.DataParallel(module, job.ranks.comm, **options)
    return Training(loop_step(model, module, job), module)
