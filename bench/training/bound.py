"""What a pipeline cannot be faster than: its slowest stage, with all ranks computing at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from bench.training.cut import cut
from bench.training.jobs import PipelineJob


def bound_step(job: PipelineJob) -> Callable[[], None]:
    """Return what sends m + p − 1 microbatches forward and back through this rank's stage alone.

    With p ranks and m microbatches a schedule without weights' gradients of their own takes at
    least as long as that of the slowest stage. Nothing is sent, and nothing is updated.
    """
    parts = cut(job)
    before, rank = list(chain(*parts[: job.ranks.rank])), job.ranks.rank
    part = nn.Sequential(OrderedDict(parts[rank]))
    inputs, targets = job.pieces[0]
    with torch.no_grad():
        inputs = nn.Sequential(OrderedDict(before))(inputs)
        back = torch.randn_like(part(inputs), memory_format=torch.contiguous_format)
    last = rank == job.ranks.size - 1
    passes = job.microbatches + job.ranks.size - 1

    def step() -> None:
        part.zero_grad()
        for _ in range(passes):
            output = part(_arrived(inputs))
            if last:
                job.mean_of_pieces(output, targets).backward()
            else:
                output.backward(back)

    return step


def _arrived(activation: Tensor) -> Tensor:
    return activation.detach().requires_grad_(activation.is_floating_point())
