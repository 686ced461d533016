"""Ranks without samples: what they run so that layers that meet all ranks find them there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from pycomm.parallel.sync_batch_norm import SyncBatchNorm

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


def needs_every_rank(module: nn.Module) -> bool:
    """Say whether forward and backward of `module` must run on all ranks."""
    return any(isinstance(layer, SyncBatchNorm) for layer in module.modules())


def empty_inputs(inputs: Any, comm: Communicator) -> Any:
    """Return inputs of no samples, in the structure of those that some rank has; on the CPU.

    Every rank must call it; `inputs` is None on those that have none.
    """

    def without_samples(x: Any) -> Any:
        return torch.empty(0, *x.shape[1:], dtype=x.dtype) if isinstance(x, torch.Tensor) else x

    found = comm.all_gather_object(tree_map(without_samples, inputs))
    return next((example for example in found if example is not None), None)


def run_for_nothing(module: nn.Module, inputs: Any) -> None:
    """Run `module` forward and backward with gradients of zero."""
    place = next((p.device for p in module.parameters()), None)
    output = module(tree_map(lambda x: x.to(place) if isinstance(x, torch.Tensor) else x, inputs))
    parts = [t.sum() for t in tree_leaves(output) if getattr(t, "requires_grad", False)]
    if parts:
        torch.stack([part * 0 for part in parts]).sum().backward()
