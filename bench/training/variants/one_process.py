"""One process that trains the whole model: what pipelines are compared with."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import nn

from bench.ranks import Ranks
from bench.training.jobs import PipelineJob
from bench.training.variants.base import Training, loop_step, variant

ONE_PROCESS = ("one-process", "one-process-whole")
"""Those with the threads of one rank."""
THREADS = "one-process-threads"


def one_works(ranks: int, microbatches: int) -> float:
    """Return in which part of the time ranks idle of which one works at a time."""
    return (ranks - 1) / ranks


@variant("one-process", parallel="model", bubble=one_works)
def pieces(job: PipelineJob) -> Training:
    """The whole model on rank 0, gradients of microbatches added up; the other ranks wait."""
    return _on_first(job, added_up)


@variant("one-process-whole", parallel="model", bubble=one_works)
def whole(job: PipelineJob) -> Training:
    """The same, the whole batch in one go."""
    return _on_first(job, lambda job, module: loop_step(module, module, job, job.whole))


@variant(THREADS, parallel="model", bubble=one_works)
def threads(job: PipelineJob) -> Training:
    """The same in one go, with the threads of all ranks: what one would do without pipelines."""
    own = torch.get_num_threads()
    every = min(own * job.ranks.comm.local.size, len(os.sched_getaffinity(0)))

    def with_threads(job: PipelineJob, module: nn.Module) -> Callable[[], None]:
        once = loop_step(module, module, job, job.whole)

        def step() -> None:
            torch.set_num_threads(every)
            try:
                once()
            finally:
                torch.set_num_threads(own)

        return step

    return _on_first(job, with_threads)


def added_up(job: PipelineJob, module: nn.Module) -> Callable[[], None]:
    """Return the step of a loop that adds up the gradients of microbatches."""
    optimizer = job.optimizer(module.named_parameters())
    batch = job.pieces

    def step() -> None:
        optimizer.zero_grad()
        for inputs, targets in batch:
            job.mean_of_pieces(module(inputs), targets).backward()
        optimizer.step()

    return step


def _on_first(
    job: PipelineJob, made: Callable[[PipelineJob, nn.Module], Callable[[], None]]
) -> Training:
    if job.ranks.rank > 0:
        return Training(job.ranks.comm.barrier, nn.Module())
    module = job.module()
    once = made(job, module)
    return Training(_then_meet(once, job.ranks), module)


def _then_meet(once: Callable[[], None], ranks: Ranks) -> Callable[[], None]:
    def step() -> None:
        once()
        ranks.comm.barrier()

    return step
