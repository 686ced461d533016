"""The cut into stages of like many parameters, with which schedules are compared."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from bench.training.jobs import PipelineJob
from pycomm.parallel.partition import partition

Layers = list[tuple[str, nn.Module]]


def cut(job: PipelineJob) -> list[Layers]:
    """Return the layers of each rank's stage in a new model, as balance="params" cuts it."""
    layers = list(job.module().named_children())
    costs = [sum(p.numel() for p in layer.parameters()) for _, layer in layers]
    return [layers[part.start : part.stop] for part in partition(costs, job.ranks.size)]


def stage(job: PipelineJob) -> nn.Sequential:
    """Return this rank's stage, with the names of the whole."""
    return nn.Sequential(OrderedDict(cut(job)[job.ranks.rank]))
