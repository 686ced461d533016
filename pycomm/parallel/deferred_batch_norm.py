"""Batch norm in microbatches whose running statistics are those of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pycomm.errors import UnsupportedError
from pycomm.parallel.replicate import on_every_rank

if TYPE_CHECKING:
    from pycomm.communicator import Communicator


class DeferredBatchNorm(_BatchNorm):
    """A batch norm whose running statistics wait for the end of the batch; made by `convert`.

    In training it normalises each microbatch by that one's own mean and variance, as every batch
    norm in a pipeline does, and adds them up; see `RunningStatistics`. A norm that is called more
    than once in a pass counts all that it was called with. Source: Kim et al., torchgpipe (2020),
    section 3.3.

    Attributes:
        seen: (3, channels), float64: for each channel how many values this batch had so far, their
            mean, and the sum of squares of their distances from it. Not in checkpoints.
    """

    seen: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised input, (samples, num_features, …)."""
        if not self.training:
            return super().forward(input)
        y = functional.batch_norm(
            input, None, None, self.weight, self.bias, training=True, eps=self.eps
        )
        self.seen.copy_(_together(torch.stack([self.seen, _moments(input.detach())])))
        return y

    @torch.no_grad()
    def track(self, seen: torch.Tensor) -> None:
        """Move the running statistics to those of a batch, (3, channels)."""
        count, mean, squares = seen
        if count.max() == 0:
            return
        batches = self.num_batches_tracked
        if batches is not None:
            batches.add_(1)
        step = 1.0 / int(batches or 1) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, squares / (count - 1))):
            if running is not None:
                running.mul_(1 - step).add_(now.to(running.dtype) * step)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Leave that to batch_norm, which knows the channels."""


class RunningStatistics:
    """The running statistics of this rank's deferred batch norms.

    Every batch is between `begin` and `commit`.

    Args:
        layers: perhaps none.
        comm: the ranks that have the same layers, and other samples.
    """

    def __init__(self, layers: Sequence[DeferredBatchNorm], comm: Communicator):
        self.layers, self._comm = layers, comm

    def begin(self) -> None:
        """Forget what was seen."""
        for layer in self.layers:
            layer.seen.zero_()

    def commit(self) -> None:
        """Move the running statistics to those of the batch over all ranks; collective."""
        if not self.layers:
            return
        mine = torch.cat([layer.seen.flatten() for layer in self.layers])
        everyone = self._comm.all_gather(mine)
        sizes = [layer.seen.numel() for layer in self.layers]
        for layer, rows in zip(self.layers, everyone.split(sizes, dim=1)):
            layer.track(_together(rows.reshape(self._comm.size, 3, -1)))


def convert(module: nn.Module, comm: Communicator) -> list[DeferredBatchNorm]:
    """Make the batch norms of a module deferred ones, and return them; every rank must call this.

    They stay the same objects; those without running statistics stay as they are.

    Args:
        module: this rank's part of a model.
        comm: the ranks of all parts.

    Raises:
        UnsupportedError: one is of a class of its own, on some rank; raised on all.
    """
    return [_deferred(layer) for layer in on_every_rank(comm, lambda: _found(module))]


def _found(module: nn.Module) -> list[_BatchNorm]:
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    for name, layer in layers:
        if type(layer) not in _CONVERTED:
            raise UnsupportedError(
                f"{name!r} is a {type(layer).__name__}, whose running statistics cannot wait for "
                f"the end of a batch: let it be a torch.nn.BatchNorm2d, or leave out "
                f"deferred_batch_norm=True"
            )
    return [layer for _, layer in layers]


def _deferred(layer: _BatchNorm) -> DeferredBatchNorm:
    layer.__class__ = DeferredBatchNorm
    zeros = layer.running_mean.new_zeros(3, layer.num_features, dtype=torch.float64)  # type: ignore[union-attr]
    layer.register_buffer("seen", zeros, persistent=False)
    return layer  # type: ignore[return-value]


def _moments(x: torch.Tensor) -> torch.Tensor:
    """Return what `seen` is after one microbatch."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x.to(torch.float64), axes, correction=0)
    count = torch.full_like(mean, x.numel() // len(mean))
    return torch.stack([count, mean, variance * count])


def _together(parts: torch.Tensor) -> torch.Tensor:
    """Return the statistics of all samples from those of some, (parts, 3, channels).

    Source: Chan et al., Updating Formulae (1979), in their order.
    """
    counts, means, squares = parts.unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total.clamp(min=1)
    return torch.stack([total, mean, (squares + counts * (means - mean).square()).sum(0)])


_CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, DeferredBatchNorm)
