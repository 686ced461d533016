"""PyTorch's torch.distributed.pipelining over Gloo."""

from __future__ import annotations

from typing import Any

import torch

from bench.peers import UnavailableError
from bench.training.cut import stage
from bench.training.jobs import PipelineJob
from bench.training.variants.base import Training, variant
from bench.training.variants.ddp import join


def fill_and_drain(ranks: int, microbatches: int) -> float:
    """Return in which part of the time ranks idle in GPipe, and in 1F1B."""
    return (ranks - 1) / (microbatches + ranks - 1)


@variant("torch-gpipe", parallel="model", competes=True, bubble=fill_and_drain)
def gpipe(job: PipelineJob) -> Training:
    """ScheduleGPipe of torch.distributed.pipelining over Gloo."""
    return _pipelined(job, "ScheduleGPipe")


@variant("torch-1f1b", parallel="model", competes=True, bubble=fill_and_drain)
def one_f_one_b(job: PipelineJob) -> Training:
    """Schedule1F1B of torch.distributed.pipelining over Gloo."""
    return _pipelined(job, "Schedule1F1B")


def _pipelined(job: PipelineJob, schedule: str) -> Training:
    from torch.distributed import pipelining  # takes a second, which others need not wait for

    if job.device != "cpu":
        raise UnavailableError("gloo sends no CUDA tensors")
    join(job.ranks)
    part = stage(job)
    rank, ranks = job.ranks.rank, job.ranks.size
    own = pipelining.PipelineStage(part, rank, ranks, torch.device("cpu"))
    run = getattr(pipelining, schedule)(own, job.microbatches, loss_fn=job.loss)
    optimizer = job.optimizer(part.named_parameters())
    inputs, targets = job.whole
    given = (inputs,) if rank == 0 else ()
    wanted: dict[str, Any] = {"target": targets} if rank == ranks - 1 else {}

    def step() -> None:
        optimizer.zero_grad()
        run.step(*given, **wanted, return_outputs=False)
        optimizer.step()

    return Training(step, part)
