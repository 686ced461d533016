"""PyTorch's DistributedDataParallel over Gloo."""

from __future__ import annotations

from functools import cache

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bench.peers.gloo import Gloo
from bench.ranks import Ranks
from bench.training.jobs import Job
from bench.training.variants.base import Training, loop_step, variant


@variant("ddp-gloo", competes=True)
def ddp(job: Job) -> Training:
    """DistributedDataParallel of torch over Gloo, in a plain loop; gradients are bucket views."""
    join(job.ranks)
    module = job.module()
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)
    ranks = job.ranks.size
    sent = 2 * (ranks - 1) * job.gradient_bytes // ranks
    return Training(loop_step(model, module, job), module, wire_bytes=sent)


@cache
def join(ranks: Ranks) -> Gloo:
    """Make Gloo's process group, once."""
    return Gloo(ranks)


def leave() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    join.cache_clear()
